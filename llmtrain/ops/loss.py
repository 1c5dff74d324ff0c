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

# logits that are made wide at a time: 4 MB of float32
_AT_ONCE = 1 << 20


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

    Products are fast when there are many rows, so that a large table is not read, and its gradient not added to, too
    often: 16 million on a CPU (32 MB of bfloat16), 128 million on a GPU.
    """
    return 1 << 24 if device == "cpu" else 1 << 27


def _positions_at_once(logits: Tensor) -> int:
    """Of a chunk: on a CPU as many as a core's cache holds of what is between two products; compilers and GPUs fuse."""
    if torch.compiler.is_compiling() or backend.device_type(logits) != "cpu":
        return len(logits)
    return min(len(logits), max(1, _AT_ONCE // logits.shape[1]))


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
        chunk = min(chunk, len(h))
        logits = h.new_empty(chunk, len(weight))
        part = _positions_at_once(logits)
        buffers = [h.new_empty(part, len(weight), dtype=wide) for _ in range(2)]
        for start in range(0, len(h), chunk or 1):
            at = slice(start, min(start + chunk, len(h)))
            x, y = h[at], targets[at]
            scored = (y != IGNORE).to(wide)
            index = y.clamp_min(0)[:, None]
            grad = torch.mm(x, weight.T, out=logits[: len(x)])  # of logits, once it is made of them
            own, partition = (torch.empty_like(scored) for _ in range(2))
            for i in range(0, len(x), part):
                some = slice(i, min(i + part, len(x)))
                z, p = (buffer[: some.stop - i] for buffer in buffers)
                torch.softmax(z.copy_(grad[some]), -1, out=p)
                # the largest logit less the log of its probability, which cannot underflow
                top, log_of_top = z.amax(-1), p.amax(-1).log_()
                torch.sub(top, log_of_top, out=partition[some])
                torch.sub(top.sub_(z.gather(-1, index[some])[:, 0]), log_of_top, out=own[some])
                if wanted:
                    push = 1 + 2 * z_loss * partition[some]
                    grad[some] = p.scatter_add_(-1, index[some], -1 / push[:, None])
            nats[at] = own * scored
            total += (nats[at] + z_loss * partition.square() * scored).sum()
            if grad_h is None or grad_weight is None:
                continue
            # a row of it is p - target / push, to be multiplied by by, on the narrow side of the products
            by = (scored * (1 + 2 * z_loss * partition))[:, None].to(h.dtype)
            torch.mm(grad, weight, out=grad_h[at]).mul_(by)
            if wide == h.dtype:
                # not addmm_, to which FlopCounterMode is blind
                torch.addmm(grad_weight, grad.T, x * by, out=grad_weight)
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
