"""The ranks of a run as a grid: rows are shared out over its data axis, matrices over its tensor axis."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

DATA, TENSOR = "data_parallel", "tensor_parallel"  # as Lightning names the axes

_grid: DeviceMesh | None = None  # none: all ranks lie along the data axis


def arrange(grid: DeviceMesh | None) -> None:
    """From now on, what is summed or gathered over rows is so over the data axis of ``grid`` alone.

    Ranks along its tensor axis have the same rows, and each row counts once.
    """
    global _grid
    _grid = grid


def n_shares() -> int:
    """Ranks along the data axis: how many shares a batch has."""
    if _grid is not None:
        return _grid[DATA].size()
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share() -> int:
    """Which share of a batch is this rank's."""
    if _grid is not None:
        return _grid[DATA].get_local_rank()
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def share_of(rank: int) -> int:
    """Which share of a batch is that rank's: along the tensor axis ranks follow one another."""
    return rank if _grid is None else rank // _grid[TENSOR].size()


def column() -> int:
    """Where along the tensor axis this rank is; those of one share differ in it."""
    return 0 if _grid is None else _grid[TENSOR].get_local_rank()


def sum_shares(x: Tensor) -> None:
    """Make ``x`` its sum over the data axis, in place."""
    if n_shares() > 1:
        dist.all_reduce(x, group=_group())


def gather_shares(x: Tensor) -> list[Tensor]:
    """``x`` of every share, in their order; all of one shape."""
    if n_shares() == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in range(n_shares())]
    dist.all_gather(parts, x.contiguous(), group=_group())
    return parts


def gather_objects(x: Any) -> Sequence[Any]:
    """The same of any object, by way of the network and no file."""
    if n_shares() == 1:
        return [x]
    parts: list[Any] = [None] * n_shares()
    dist.all_gather_object(parts, x, group=_group())
    return parts


def _group() -> dist.ProcessGroup | None:
    return None if _grid is None else _grid[DATA].get_group()
