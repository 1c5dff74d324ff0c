"""Lightning's strategy for models of which every rank holds a part, where it falls short of what we need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule

from llmtrain import ranks


class Sharded(ModelParallelStrategy):
    """FSDP2 over the data axis and tensor parallelism over the tensor axis; the model arranges itself on the mesh."""

    def setup_environment(self) -> None:
        super().setup_environment()
        ranks.arrange(self.device_mesh)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within, gradients stay whole on each rank: Lightning does this for DDP alone.

        So accumulation costs one reduction a step, and the memory of all gradients unsharded.
        """
        assert self.model is not None
        with unsynchronised(self.model):
            yield

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a pickle: checkpoints are ours (llmtrain.checkpoint)")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a pickle: checkpoints are ours (llmtrain.checkpoint)")


@contextmanager
def unsynchronised(module: nn.Module) -> Iterator[None]:
    """Within, a backward pass leaves the gradients of what is sharded below ``module`` whole and unreduced."""
    roots = [child for child in module.children() if isinstance(child, FSDPModule)]
    for root in roots:
        root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        for root in roots:
            root.set_requires_gradient_sync(True)
