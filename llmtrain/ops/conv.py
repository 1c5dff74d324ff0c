"""The short convolution of a state space model: a few shifted multiply-adds that stop at documents' edges."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops import backend
from llmtrain.ops.dtypes import at_least_float32

# axes: W taps, the last of which is the token's own
_TILE = 1 << 19  # elements of a tile: 2 MB of float32


def short_conv_reference(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " D"],
    doc: Int[Tensor, "B T"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "B T D"]:
    """``silu(bias + sum_i weight[:, i] x[t - W + 1 + i])`` a channel, over tokens of t's document, in at least float32.

    ``reverse`` mirrors it: over the tokens that follow.
    """
    x = x.to(at_least_float32(x.dtype))
    out = x * weight[:, -1] + bias
    for gap, near, tap in _taps(weight, doc):
        _, there = _ends(gap, reverse)
        heard = F.pad(x[:, there] * near, (0, 0, 0, gap) if reverse else (0, 0, gap, 0))
        out = out + heard * tap
    return F.silu(out)


def short_conv(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " D"],
    doc: Int[Tensor, "B T"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "B T D"]:
    """The same, row by row in few passes where no compiler fuses it; what is within is computed twice, not kept."""
    if torch.compiler.is_compiling() or backend.device_type(x) != "cpu":
        return short_conv_reference(x, weight, bias, doc, reverse=reverse)
    wide = at_least_float32(x.dtype)
    with torch.autocast("cpu", enabled=False):
        return _ShortConv.apply(x.to(wide), weight.to(wide), bias.to(wide), doc, reverse)


def _taps(weight: Tensor, doc: Tensor) -> Iterator[tuple[int, Float[Tensor, "B S 1"], Float[Tensor, " D"]]]:
    """Every distance in tokens, 1 where two so far apart are of one document, and the weight of such a pair."""
    tokens, taps = doc.shape[1], weight.shape[1]
    for gap in range(1, min(tokens, taps)):
        near = doc[:, gap:] == doc[:, : tokens - gap]
        yield gap, near[..., None].to(weight.dtype), weight[:, -1 - gap]  # products with booleans are slow


def _ends(gap: int, reverse: bool) -> tuple[slice, slice]:
    """Where the hearing and the heard ends of the pairs ``gap`` apart lie."""
    later, earlier = slice(gap, None), slice(None, -gap)
    return (earlier, later) if reverse else (later, earlier)


def _before_silu(x: Tensor, weight: Tensor, bias: Tensor, doc: Tensor, reverse: bool) -> Tensor:
    out = torch.addcmul(bias, x, weight[:, -1])
    for gap, near, tap in _taps(weight, doc):
        here, there = _ends(gap, reverse)
        out[:, here].addcmul_(x[:, there] * near, tap)
    return out


def _tiles(x: Tensor) -> list[slice]:
    step = max(1, _TILE // max(1, x[0].numel()))
    return [slice(start, start + step) for start in range(0, len(x), step)]


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, doc: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias, doc)
        ctx.reverse = reverse
        weight = weight.T.contiguous().T  # a tap's channels side by side
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for r in _tiles(x):
            torch.ops.aten.silu.out(_before_silu(x[r], weight, bias, doc[r], reverse), out=out[r])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, doc = ctx.saved_tensors
        weight = weight.T.contiguous().T
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for r in _tiles(x):
            rows = x[r]
            before = _before_silu(rows, weight, bias, doc[r], ctx.reverse)
            g = torch.ops.aten.silu_backward(grads[0][r], before)
            grad_bias += g.sum((0, 1))
            grad_weight[:, -1] += (g * rows).sum((0, 1))
            out = torch.mul(g, weight[:, -1], out=grad_x[r])
            for gap, near, tap in _taps(weight, doc[r]):
                here, there = _ends(gap, ctx.reverse)
                heard = g[:, here] * near
                out[:, there].addcmul_(heard, tap)
                grad_weight[:, -1 - gap] += heard.mul_(rows[:, there]).sum((0, 1))
        return grad_x, grad_weight, grad_bias, None, None
