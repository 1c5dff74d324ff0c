"""Kernels of a GPU as a dry run meets them: what they keep and return, on tensors that have no data."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from llmtrain.ops.mask import Heads, KeyHeads
from llmtrain.types import Seq, Visibility

# bytes that an operation holds while it runs, beyond its arguments and results, where nothing can look into it
INSIDE: dict[Any, Callable[..., int]] = {}


def has_data(x: Tensor) -> bool:
    return not isinstance(x, FakeTensor)


def found(mask: Bool[Tensor, " N"], share: float) -> Int[Tensor, " n"]:
    """Where ``mask`` is set; without data, as many places as the ``share`` of it that is expected."""
    if has_data(mask):
        return mask.nonzero()[:, 0]
    return torch.empty(round(share * len(mask)), dtype=torch.int64, device=mask.device)


def flash(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
) -> Heads:
    """``attention_gpu.flash`` where no row has padding: tokens laid end to end, and under PREFIX two calls."""

    def call() -> Tensor:
        flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # N H K
        return _Fused.apply(*flat).unflatten(0, (len(q), -1)).transpose(1, 2)

    if visibility is not Visibility.PREFIX:
        return call()
    return torch.where(q_seq.prefix[:, None, :, None], call(), call())


def flex(q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
    """``attention_gpu.flex``; its block mask is a few bytes a pair of 128 x 128 positions, and is left out."""
    return _Fused.apply(q, k, v)


class _Fused(torch.autograd.Function):
    """Attention that never writes out its scores: it keeps its inputs, its output and a number a query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        partition = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, partition)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, partition = ctx.saved_tensors
        pull = torch.empty_like(partition)  # noqa: F841 - a sum over each row, which the kernel writes first
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def mamba(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, doc: Tensor, *, chunk: int, reverse: bool
) -> Tensor:
    """``scan_mamba.mamba``: its turned copies, and what the kernels keep for the way back."""

    def turned(t: Tensor) -> Tensor:
        return t.flip(1) if reverse else t

    chunk = 1 << max(4, (chunk - 1).bit_length())
    y = _Scanned.apply(turned(x), turned(dt), a, turned(b), turned(c), chunk)
    return turned(y).masked_fill((doc < 0)[..., None, None], 0.0)


class _Scanned(torch.autograd.Function):
    """Inputs, output and log-decays are kept; the states of chunks and the scores within them are made twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
        decays = torch.empty_like(dt)
        passing = _states(x, b, chunk)
        out = torch.empty_like(x)
        ctx.save_for_backward(x, dt, a, b, c, decays, out)
        ctx.chunk = chunk
        del passing
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, a, b, c, *_ = ctx.saved_tensors
        passing = [_states(x, b, ctx.chunk) for _ in range(2)]  # and their gradients
        out = [torch.empty_like(t) for t in (x, dt, a, b, c)]
        del passing
        return *out, None


def _states(x: Tensor, b: Tensor, chunk: int) -> list[Tensor]:
    (rows, tokens, heads, width), (groups, n_state) = x.shape, b.shape[2:]
    chunks = -(-tokens // chunk)
    states = x.new_empty(rows, chunks, heads, width, n_state)
    return [states, x.new_empty(rows, chunks, groups, chunk, chunk)]
