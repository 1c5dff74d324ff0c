"""Rotary position embedding, in the half-split layout of GPT-NeoX and of the Hugging Face models."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.once import once_a_batch

Rotation = tuple[Float[Tensor, "B 1 T K"], Float[Tensor, "B 1 T K"]]


@once_a_batch
def rotation(pos: Int[Tensor, "B T"], *, d: int, base: float, dtype: torch.dtype) -> Rotation:
    """Cosine and sine of every position's angles (Su et al. 2021), for heads of width ``d``.

    Angles are computed in at least float32: in bfloat16 positions past 256 would share one.
    """
    wide = at_least_float32(dtype)
    inverse = base ** (-torch.arange(0, d, 2, device=pos.device, dtype=wide) / d)
    angle = pos[:, None, :, None].to(wide) * inverse
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate_reference(x: Float[Tensor, "B H T K"], by: Rotation) -> Float[Tensor, "B H T K"]:
    cos, sin = by
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def rotate(x: Float[Tensor, "B H T K"], by: Rotation) -> Float[Tensor, "B H T K"]:
    """The same; its gradient is the rotation back, which autograd would not see."""
    if torch.compiler.is_compiling():
        return rotate_reference(x, by)
    return _Rotate.apply(x, *by)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, grad.roll(grad.shape[-1] // 2, -1), sin, value=-1), None, None
