"""The rows of all ranks as one batch, with their gradients: what negatives across ranks are made of."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def first_row(rows: int) -> int:
    """Where this rank's rows begin in what ``gathered`` returns."""
    return rows * dist.get_rank() if dist.is_initialized() else 0


def gathered(x: Tensor) -> Tensor:
    """``x`` [B ...] of every rank, in the order of ranks; each gives as many rows.

    The gradient of a row is the sum of what the losses of all ranks want of it. So where each rank's loss is the mean
    over its own rows, and gradients are averaged over ranks, they are those of one process with the whole batch: no
    further factor is needed.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
