"""Cross-entropy of a linear head: the plain reference, and one that never holds all logits."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops import backend
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.types import IGNORE


class TokenLoss(NamedTuple):
    total: Float[Tensor, ""]  # sum over scored positions of nats + z_loss * logsumexp^2; carries the gradient
    nats: Float[Tensor, " N"]  # negative log-likelihood of each target, 0 where it is IGNORE; no gradient


def linear_cross_entropy_reference(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"], *, z_loss: float = 0.0
) -> TokenLoss:
    """All logits at once, in at least float32."""
    logits = F.linear(h, weight)
    logits = logits.to(at_least_float32(logits.dtype))
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    penalty = z_loss * logits.logsumexp(-1).square() * (targets != IGNORE)
    return TokenLoss((nats + penalty).sum(), nats.detach())


def linear_cross_entropy(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"], *, z_loss: float = 0.0
) -> TokenLoss:
    """The same, a chunk of positions at a time, so that memory does not grow with N x V.

    The gradient of a chunk is taken while its logits are there, and only multiplied in the backward pass (the method
    of Liger's fused linear cross-entropy): three matrix products in all, as many as the reference. ``z_loss`` is the
    weight of the squared log-partition (PaLM, Chowdhery et al. 2022). Under autocast the products run in its dtype.
    """
    device = h.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
    chunk = max(1, chunk_elements(backend.device_type(h)) // weight.shape[0])
    wanted = torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        return TokenLoss(*_Chunked.apply(h.to(dtype), weight.to(dtype), targets, z_loss, chunk, wanted))


def chunk_elements(device: str) -> int:
    """How many logits are held at a time on a type of device.

    A CPU is fast while they stay near its cores (16 MB of float32); a GPU needs large products (512 MB).
    """
    return 1 << 22 if device == "cpu" else 1 << 27


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        wide = at_least_float32(h.dtype)
        nats = torch.zeros(len(h), dtype=wide, device=h.device)
        total = torch.zeros((), dtype=wide, device=h.device)
        grad_h = torch.empty_like(h) if wanted else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=h.device) if wanted else None
        for start in range(0, len(h), chunk):
            at = slice(start, start + chunk)
            x, y = h[at], targets[at]
            logits = (x @ weight.T).to(wide)
            scored = (y != IGNORE).to(wide)
            index = y.clamp_min(0)[:, None]
            log_p = logits.log_softmax(-1)
            nats[at] = -log_p.gather(-1, index)[:, 0] * scored
            partition = logits[:, 0] - log_p[:, 0]
            total += (nats[at] + z_loss * partition.square() * scored).sum()
            if grad_h is None or grad_weight is None:
                continue
            # the gradient of a row of logits is by * (p - target / push), with by on the narrow side of the products
            push = 1 + 2 * z_loss * partition
            by = (scored * push)[:, None].to(h.dtype)
            grad = log_p.exp_().scatter_add_(-1, index, -1 / push[:, None]).to(h.dtype)
            grad_h[at] = (grad @ weight) * by
            if wide == h.dtype:
                torch.addmm(
                    grad_weight, grad.T, x * by, out=grad_weight
                )  # FlopCounterMode is blind to addmm_
            else:
                grad_weight += grad.T @ (x * by)
        if grad_h is not None and grad_weight is not None:
            ctx.save_for_backward(grad_h, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nats)
        return total, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_weight = ctx.saved_tensors
        by = grads[0]
        return grad_h * by.to(grad_h.dtype), grad_weight * by.to(grad_weight.dtype), None, None, None, None
