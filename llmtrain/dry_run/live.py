"""The bytes of all tensors that are alive, followed operation by operation, with what they are made of at the peak."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from llmtrain.dry_run.messages import Message, message_of
from llmtrain.ops import dataless

_WAIT = torch.ops._c10d_functional.wait_tensor.default
_READ = torch.ops.aten._local_scalar_dense.default


class Parts(NamedTuple):
    """Bytes that are alive at one moment."""

    parameters: int = 0  # and buffers
    gradients: int = 0
    optimiser: int = 0  # moments, and the average of the weights
    gathered: int = 0  # whole weights and the buffers of messages, where ranks hold shards
    batch: int = 0
    activations: int = 0  # what the forward pass kept, and all that is passing

    @property
    def total(self) -> int:
        return sum(self)


class Live(TorchDispatchMode):
    """Within it, the bytes of storages, from the operation that makes one until the last tensor on it is gone.

    ``know`` says what stays: parameters, optimiser state, batch; ``gradients`` is asked at every peak; what is neither
    counts as activations. Peaks are kept for each phase (``during``). ``granule`` is what an allocator rounds up to.
    Messages between ranks are kept too.

    Of torch's own trackers (``torch.distributed._tools``), MemTracker knows neither accumulation nor an optimiser of
    several rules, and FSDPMemTracker only models that are sharded; how they follow storages is what is done here.
    """

    def __init__(self, gradients: Callable[[], Iterable[Tensor]], *, granule: int = 1) -> None:
        super().__init__()
        self.phase = "build"
        self.peaks: dict[str, Parts] = {}
        self.messages: list[Message] = []
        self.bytes = 0
        self._gradients, self._granule = gradients, granule
        self._known = Parts()
        self._highest: dict[str, int] = {}
        self._sizes: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of storages that are alive
        self._gathered: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._mode: Any = None

    def __enter__(self) -> "Live":
        self._mode = active_fake_mode()
        self._resize = torch.UntypedStorage.resize_
        live = self

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            live._resize(storage, size)  # FSDP frees and refills whole weights so, past any operation
            live._follow(storage)
            live._gathered[storage] = True

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # it asks again for what it does to this rank's share
        if func is _READ and self._mode is not None:
            kind = float if args[0].is_floating_point() else int
            return kind(1)  # a flag that is set, or a norm: what a step reads of its numbers
        if func is _WAIT and self._mode is not None:
            return args[0]  # as on a device; a fake one would be a new tensor
        out = func(*args, **(kwargs or {}))
        if active_fake_mode() is not self._mode:
            return out  # shapes alone, asked for by DTensor
        for tensor in tensors(out):
            self._follow(tensor.untyped_storage())
        if (inside := dataless.INSIDE.get(func)) is not None:
            self._rise(self.bytes + inside(*args))
        if (message := message_of(func, args, out)) is not None:
            self.messages.append(message._replace(buffers=()))
            for tensor in message.buffers:
                self._follow(tensor.untyped_storage())
                self._gathered[tensor.untyped_storage()] = True
        return out

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // self._granule) * self._granule
        known = self._sizes.get(storage)
        if known is None:
            known = self._sizes[storage] = [0]
            weakref.finalize(storage, partial(self._gone, known))
        if size == known[0]:
            return
        self.bytes += size - known[0]
        known[0] = size
        self._rise(self.bytes)

    def _rise(self, now: int) -> None:
        if now > self._highest.get(self.phase, 0):
            self._highest[self.phase] = now
            self.peaks[self.phase] = self._parts(now)

    def _gone(self, known: list[int]) -> None:
        self.bytes -= known[0]
        known[0] = 0

    def know(self, *, parameters: Any, optimiser: Any, batch: Any) -> None:
        """Trees of tensors that stay through all steps, made before; as the gradients that there are."""
        for tensor in tensors([parameters, optimiser, batch, list(self._gradients())]):
            self._follow(tensor.untyped_storage())
        self._known = Parts(
            parameters=self._size(tensors(parameters)),
            optimiser=self._size(tensors(optimiser)),
            batch=self._size(tensors(batch)),
        )

    def _parts(self, now: int) -> Parts:
        gradients = self._size(tensors(list(self._gradients())))
        gathered = sum(self._sizes[storage][0] for storage in list(self._gathered))
        known = self._known._replace(gradients=gradients, gathered=gathered)
        return known._replace(activations=now - known.total)

    def _size(self, of: Iterable[Tensor]) -> int:
        storages = {
            storage._cdata: storage for storage in (t.untyped_storage() for t in of)
        }  # ties share one
        return sum(self._sizes[storage][0] for storage in storages.values() if storage in self._sizes)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The plain tensors of a tree; of a sharded one this rank's share."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            if is_traceable_wrapper_subclass(leaf):
                names, _ = leaf.__tensor_flatten__()
                yield from tensors([getattr(leaf, name) for name in names])
            else:
                yield leaf
