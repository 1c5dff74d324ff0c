"""RMS normalisation: the reference, and one for the CPU, where torch has no fused kernel."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops import backend, dataless
from llmtrain.ops.dtypes import at_least_float32

# numbers worked on at a time in the backward pass, so that what is made of them stays in a core's cache
_AT_ONCE = 1 << 19


def rms_norm_reference(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*B D"]:
    """``x / sqrt(mean(x^2) + eps) * weight`` (Zhang and Sennrich 2019), in at least float32, and wide it stays."""
    wide = at_least_float32(x.dtype)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps)


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*B D"]:
    """The same with a third of the passes over ``x``, forward and backward; compilers and GPUs fuse the reference.

    A GPU's kernel keeps what ours does, so ours stands for it in a dry run, where torch would take the reference apart.
    """
    if torch.compiler.is_compiling() or (backend.device_type(x) != "cpu" and dataless.has_data(x)):
        return rms_norm_reference(x, weight, eps)
    wide = at_least_float32(x.dtype)
    with torch.autocast("cpu", enabled=False):
        return _RMSNorm.apply(x.to(wide), weight.to(wide), eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.shape = x.shape
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        grad, x, inverse = (t.reshape(-1, t.shape[-1]) for t in (grad, x, inverse))
        (n, d), step = x.shape, max(1, _AT_ONCE // x.shape[1])
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        buffer = x.new_empty(min(n, step), d)
        for start in range(0, n, step):
            at = slice(start, min(start + step, n))
            product = torch.mul(grad[at], x[at], out=buffer[: at.stop - start])
            # along x: the part that the norm takes back
            pull = torch.mv(product, weight)[:, None].mul_(inverse[at].square()).div_(-d)
            grad_weight += torch.mv(product.T, inverse[at, 0])
            torch.mul(grad[at], weight, out=grad_x[at]).addcmul_(x[at], pull).mul_(inverse[at])
        return grad_x.view(ctx.shape), grad_weight, None
