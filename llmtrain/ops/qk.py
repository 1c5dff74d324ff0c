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


def norm_and_rotate_reference(
    qkv: Float[Tensor, "B T C"], q_gain: Gain, k_gain: Gain, turn: Rotation, *, n_heads: int, eps: float
) -> Parts:
    """Queries and keys, RMS-normalised head by head (Henry et al. 2020), then rotated; and values as they are.

    ``qkv`` holds ``n_heads`` heads of queries, then G of keys and G of values. What is between is computed in at
    least float32; queries and keys come out in the dtype of the values.
    """
    d = len(q_gain)
    heads = qkv.unflatten(-1, (-1, d)).transpose(1, 2)
    n_kv_heads = (heads.shape[1] - n_heads) // 2
    q, k, v = heads.split((n_heads, n_kv_heads, n_kv_heads), 1)
    q, k = (rotate(rms_norm(x, gain, eps), turn).to(v.dtype) for x, gain in ((q, q_gain), (k, k_gain)))
    return q, k, v


def norm_and_rotate(
    qkv: Float[Tensor, "B T C"], q_gain: Gain, k_gain: Gain, turn: Rotation, *, n_heads: int, eps: float
) -> Parts:
    """The same in half the time on a CPU; compilers and GPUs fuse the reference, and keep what it keeps."""
    if torch.compiler.is_compiling() or backend.device_type(qkv) != "cpu":
        return norm_and_rotate_reference(qkv, q_gain, k_gain, turn, n_heads=n_heads, eps=eps)
    with torch.autocast("cpu", enabled=False):
        return _NormAndRotate.apply(qkv, q_gain, k_gain, *turn, n_heads, eps)


class _NormAndRotate(torch.autograd.Function):
    """A few rows at a time, in buffers that are used again: fresh memory costs a CPU more than the arithmetic."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_gain: Tensor,
        k_gain: Tensor,
        cos: Tensor,
        sin: Tensor,
        n_heads: int,
        eps: float,
    ) -> Parts:
        n_rows, n_tokens, width = qkv.shape
        d = len(q_gain)
        n = (width // d + n_heads) // 2  # heads of queries and keys
        wide = at_least_float32(qkv.dtype)
        gain = torch.cat((q_gain.expand(n_heads, d), k_gain.expand(n - n_heads, d))).to(wide)
        heads = qkv.unflatten(-1, (-1, d))
        out = qkv.new_empty(n_rows, n_tokens, n, d)
        inverse = qkv.new_empty(n_rows, n_tokens, n, 1, dtype=wide)
        size = _tokens_at_once(n * d)
        buffers = [qkv.new_empty(min(size, n_tokens), n, d, dtype=wide) for _ in range(2)]
        for row, at in _slices(n_rows, n_tokens, size):
            x, y = (buffer[: at.stop - at.start] for buffer in buffers)
            x.copy_(heads[row, at, :n])
            torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=inverse[row, at])
            inverse[row, at].square_().div_(d).add_(eps).rsqrt_()
            _rotate(x.mul_(inverse[row, at]).mul_(gain), cos[row, 0, at], sin[row, 0, at], y)
            out[row, at] = y
        ctx.save_for_backward(qkv, gain, cos, sin, inverse)
        ctx.n_heads = n_heads
        q, k = out.transpose(1, 2).split((n_heads, n - n_heads), 1)
        return q, k, heads[:, :, n:].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, gain, cos, sin, inverse = ctx.saved_tensors
        (n_rows, n_tokens, _), (n, d), n_heads = qkv.shape, gain.shape, ctx.n_heads
        heads = qkv.unflatten(-1, (-1, d))
        grad = torch.empty_like(heads)
        grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
        grad[:, :, n:] = grad_v
        grad_gain = torch.zeros_like(gain)
        size = _tokens_at_once(n * d)
        buffers = [gain.new_empty(min(size, n_tokens), n, d) for _ in range(3)]
        for row, at in _slices(n_rows, n_tokens, size):
            x, y, turned = (buffer[: at.stop - at.start] for buffer in buffers)
            x[:, :n_heads] = grad_q[row, at]
            x[:, n_heads:] = grad_k[row, at]
            _rotate(x, cos[row, 0, at], -sin[row, 0, at], turned)
            y.copy_(heads[row, at, :n]).mul_(inverse[row, at])
            torch.mul(turned, y, out=x)
            grad_gain += x.sum(0)
            pull = x.mul_(gain).sum(-1, keepdim=True).div_(-d)  # along y: the part that the norm takes back
            grad[row, at, :n] = turned.mul_(gain).addcmul_(y, pull).mul_(inverse[row, at])
        by_head = grad_gain.split((n_heads, n - n_heads))
        return grad.flatten(-2), *(g.sum(0) for g in by_head), None, None, None, None


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
