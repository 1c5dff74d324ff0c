"""An exponential moving average of the weights, kept beside them and lent to an evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llmtrain.ops.dtypes import at_least_float32
from llmtrain.place import local


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights after every update (Polyak & Juditsky 1992, with a horizon).

    In at least float32: an increment of 1 - decay is lost in bfloat16.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._weights: list[Tensor] = list(weights.values())
        self._averages = [p.detach().to(at_least_float32(p.dtype), copy=True) for p in self._weights]
        self._names = list(weights)
        self._decay = decay

    def start(self) -> None:
        """Begin from the weights as they are now."""
        _copy(self._weights, self._averages)

    @torch.no_grad()
    def update(self) -> None:
        # the local parts: elementwise, so that neither the layout nor its mesh matters
        averages = [local(a) for a in self._averages]
        weights = [local(p).to(a.dtype) for p, a in zip(self._weights, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self._decay)

    def tensors(self) -> dict[str, Tensor]:
        return {f"ema.{name}": average for name, average in zip(self._names, self._averages, strict=True)}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within, the parameters hold the averages; after, what they held before, bit for bit."""
        own = [p.detach().clone() for p in self._weights]
        _copy(self._averages, self._weights)
        try:
            yield
        finally:
            _copy(own, self._weights)


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for a, b in zip(source, target, strict=True):  # not foreach: it has no form for sharded tensors
        b.copy_(a)
