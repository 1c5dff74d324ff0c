"""The rows of all ranks as one batch, with their gradients: what negatives across ranks are made of."""

from typing import Any

import torch
from torch import Tensor

from llmtrain.ranks import gather_shares, n_shares, share, sum_shares


def first_row(rows: int) -> int:
    """Where this rank's rows begin in what ``gathered`` returns."""
    return rows * share()


def gathered(x: Tensor) -> Tensor:
    """``x`` [B ...] of every share of the batch, in their order; each has as many rows.

    The gradient of a row is the sum of what the losses of all shares want of it. So where each one's loss is the mean
    over its own rows, and gradients are averaged over them, they are those of one process with the whole batch: no
    further factor is needed.
    """
    return x if n_shares() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat(gather_shares(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        sum_shares(total)
        return total.chunk(n_shares())[share()]
