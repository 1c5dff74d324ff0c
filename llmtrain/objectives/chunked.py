"""A batch beyond memory, chunk by chunk: exact gradients at the cost of a second forward pass."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmtrain.ops.memory import give_back, given_back_before_its_gradient

Out = TypeVar("Out")


def in_chunks(function: Callable[[Any], Out], batch: Any, rows: int | None) -> list[Out]:
    """``function`` of the batch, so many rows at a time (none: all), and made anew for the backward pass.

    ``batch`` is a tree of tuples of tensors that share their first axis. Of a chunk only the result is kept; a batch
    that is one chunk is computed once. Under a loss that joins the results of all chunks this is GradCache (Gao et al.
    2021) in one backward pass. ``function`` must be pure: dropout is addressed, so its masks come again by themselves,
    and what routers count is returned, so it is counted once.
    """
    n = len(_first(batch))
    if rows is None or rows >= n:
        return [function(batch)]
    parts = (_slice(batch, slice(start, start + rows)) for start in range(0, n, rows))
    return [_anew(function, part) for part in parts]


def _anew(function: Callable[[Any], Out], part: Any) -> Out:
    out: Out = checkpoint(function, part, use_reentrant=False, preserve_rng_state=False)
    give_back(_first(part).device.type)
    for tensor in _tensors(out):
        given_back_before_its_gradient(tensor)
    return out


def _first(tree: Any) -> Tensor:
    return tree if isinstance(tree, Tensor) else _first(tree[0])


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from _tensors(part)


def _slice(tree: Any, at: slice) -> Any:
    if isinstance(tree, Tensor):
        return tree[at]
    parts = [_slice(part, at) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
