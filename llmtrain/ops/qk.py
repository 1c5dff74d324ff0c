"""Queries and keys made ready for attention: normalised and rotated, by the reference or in one sweep on a CPU."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops import backend
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.norm import rms_norm
from llmtrain.ops.rope import Rotation, rotate

# numbers worked on at a time, so that they and what is made of them stay in a core's cache
_AT_ONCE = 1 << 18

Gain = Float[Tensor, " K"]
Parts = tuple[Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]]


def heads_of(x: Float[Tensor, "B T C"], head_dim: int) -> Float[Tensor, "B H T K"]:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def split_qkv(qkv: Float[Tensor, "B T C"], head_dim: int, *, n_heads: int) -> Parts:
    """``n_heads`` heads of queries, then G of keys and G of values."""
    heads = heads_of(qkv, head_dim)
    n_kv_heads = (heads.shape[1] - n_heads) // 2
    q, k, v = heads.split((n_heads, n_kv_heads, n_kv_heads), 1)
    return q, k, v


def norm_and_rotate_reference(
    qkv: Float[Tensor, "B T C"], q_gain: Gain, k_gain: Gain, turn: Rotation, *, n_heads: int, eps: float
) -> Parts:
    """``split_qkv`` with queries and keys RMS-normalised head by head (Henry et al. 2020), then rotated.

    What is between is computed in at least float32; queries and keys come out in the dtype of the values.
    """
    q, k, v = split_qkv(qkv, len(q_gain), n_heads=n_heads)
    q, k = (rotate(rms_norm(x, gain, eps), turn).to(v.dtype) for x, gain in ((q, q_gain), (k, k_gain)))
    return q, k, v


def norm_and_rotate(
    qkv: Float[Tensor, "B T C"], q_gain: Gain, k_gain: Gain, turn: Rotation, *, n_heads: int, eps: float
) -> Parts:
    """The same in half the time on a CPU; compilers and GPUs fuse the reference, and keep what it keeps."""
    if _is_fused(qkv):
        return norm_and_rotate_reference(qkv, q_gain, k_gain, turn, n_heads=n_heads, eps=eps)
    d = len(q_gain)
    n_kv_heads = (qkv.shape[-1] // d - n_heads) // 2
    gain = torch.cat((q_gain.expand(n_heads, d), k_gain.expand(n_kv_heads, d)))
    with torch.autocast("cpu", enabled=False):
        q, k, v = _Sweep.apply(qkv, gain, *turn, (n_heads, n_kv_heads), eps)
    return q, k, v


def norm_heads_reference(
    x: Float[Tensor, "B T C"], gain: Gain, *, n: int, eps: float
) -> tuple[Float[Tensor, "B n T K"], Float[Tensor, "B m T K"]]:
    """The first ``n`` heads RMS-normalised, and the others as they are, all in the dtype of ``x``."""
    heads = heads_of(x, len(gain))
    first, rest = heads.split((n, heads.shape[1] - n), 1)
    return rms_norm(first, gain, eps).to(x.dtype), rest


def norm_heads(
    x: Float[Tensor, "B T C"], gain: Gain, *, n: int, eps: float
) -> tuple[Float[Tensor, "B n T K"], Float[Tensor, "B m T K"]]:
    """The same in one sweep on a CPU."""
    if _is_fused(x):
        return norm_heads_reference(x, gain, n=n, eps=eps)
    with torch.autocast("cpu", enabled=False):
        first, rest = _Sweep.apply(x, gain.expand(n, -1), None, None, (n,), eps)
    return first, rest


def _is_fused(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or backend.device_type(x) != "cpu"


class _Sweep(torch.autograd.Function):
    """A few rows at a time, in buffers that are used again: fresh memory costs a CPU more than the arithmetic."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        sizes: tuple[int, ...],
        eps: float,
    ) -> tuple[Tensor, ...]:
        """Heads of ``sizes``, normalised by their rows of ``gain`` and perhaps rotated, and the heads that are left."""
        n_rows, n_tokens, _ = x.shape
        n, d = gain.shape
        wide = at_least_float32(x.dtype)
        gain = gain.to(wide)
        heads = x.unflatten(-1, (-1, d))
        out = [x.new_empty(n_rows, n_tokens, size, d) for size in sizes]
        inverse = x.new_empty(n_rows, n_tokens, n, 1, dtype=wide)
        length = _tokens_at_once(n * d)
        buffers = [x.new_empty(min(length, n_tokens), n, d, dtype=wide) for _ in range(2)]
        for row, at in _slices(n_rows, n_tokens, length):
            y, turned = (buffer[: at.stop - at.start] for buffer in buffers)
            y.copy_(heads[row, at, :n])
            torch.linalg.vector_norm(y, dim=-1, keepdim=True, out=inverse[row, at])
            inverse[row, at].square_().div_(d).add_(eps).rsqrt_()
            y.mul_(inverse[row, at]).mul_(gain)
            if cos is not None and sin is not None:
                _rotate(y, cos[row, 0, at], sin[row, 0, at], turned)
                y = turned
            for part, own in zip(out, y.split(sizes, 1), strict=True):
                part[row, at] = own
        ctx.save_for_backward(x, gain, cos, sin, inverse)
        ctx.sizes = sizes
        return tuple(part.transpose(1, 2) for part in (*out, heads[:, :, n:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, cos, sin, inverse = ctx.saved_tensors
        (n_rows, n_tokens, _), (n, d) = x.shape, gain.shape
        heads = x.unflatten(-1, (-1, d))
        grad = torch.empty_like(heads)
        *to_parts, to_rest = (g.transpose(1, 2) for g in grads)
        grad[:, :, n:] = to_rest
        grad_gain = torch.zeros_like(gain)
        length = _tokens_at_once(n * d)
        buffers = [gain.new_empty(min(length, n_tokens), n, d) for _ in range(3)]
        for row, at in _slices(n_rows, n_tokens, length):
            z, y, back = (buffer[: at.stop - at.start] for buffer in buffers)
            arrived = back if cos is None else z
            for part, own in zip(to_parts, arrived.split(ctx.sizes, 1), strict=True):
                own.copy_(part[row, at])
            if cos is not None:
                _rotate(z, cos[row, 0, at], -sin[row, 0, at], back)
            y.copy_(heads[row, at, :n]).mul_(inverse[row, at])
            torch.mul(back, y, out=z)
            grad_gain += z.sum(0)
            pull = z.mul_(gain).sum(-1, keepdim=True).div_(-d)  # along y: the part that the norm takes back
            grad[row, at, :n] = back.mul_(gain).addcmul_(y, pull).mul_(inverse[row, at])
        return grad.flatten(-2), grad_gain, None, None, None, None


def _tokens_at_once(width: int) -> int:
    return max(1, _AT_ONCE // width)


def _slices(n_rows: int, n_tokens: int, size: int) -> list[tuple[int, slice]]:
    starts = range(0, n_tokens, size)
    return [(row, slice(start, min(start + size, n_tokens))) for row in range(n_rows) for start in starts]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """``rope.rotate`` of [T, N, K] by angles of [T, K], into ``out``."""
    half = x.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
