"""Dropless experts on a CPU: one opaque operation that walks over the experts, so that compiled graphs stay whole."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmtrain.ops.dataless import INSIDE

# oneDNN, whose products of less than float32 these are, compiles one for every new shape and keeps the last thousand:
# at loads that never come back that took half as long as the products (1.2 ms for 2.0)
_ROUND = 32


class _Plan:
    """Slots laid out by their experts, and where those of each token then are.

    An expert's last slot comes again, with a gate of 0, until there is a round number of them, where it is worth it.
    """

    def __init__(self, token: Tensor, expert: Tensor, gate: Tensor, n_experts: int, dtype: torch.dtype):
        order = expert.argsort(stable=True)
        counts = torch.bincount(expert, minlength=n_experts)
        unit = _unit(dtype)
        rounded = (counts + unit - 1) // unit * unit
        first, begin = counts.cumsum(0) - counts, rounded.cumsum(0) - rounded
        self._rounded: list[int] = rounded.tolist()
        self.rows = sum(self._rounded)
        of = torch.repeat_interleave(rounded, output_size=self.rows)
        nth = torch.arange(self.rows, device=order.device) - begin[of]
        slot = order[first[of] + torch.minimum(nth, counts[of] - 1)]
        self.token = token[slot]
        self.gate = (gate[slot] * (nth < counts[of]))[:, None]
        self.place = torch.empty_like(order)
        by_expert = expert[order]
        self.place[order] = torch.arange(len(order), device=order.device) + (begin - first)[by_expert]
        self._slot_token = token

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Each expert with its slots."""
        start = 0
        for e, n in enumerate(self._rounded):
            yield e, slice(start, start + n)
            start += n

    def by_token(self, y: Tensor, n_tokens: int) -> Tensor:
        """[N D], for each token the sum of its slots' rows of ``y`` [S D], in a fixed order."""
        starts = torch.searchsorted(self._slot_token, torch.arange(n_tokens, device=y.device))
        return F.embedding_bag(self.place, y, starts, mode="sum")  # a sum of gathered rows in one pass


def _unit(dtype: torch.dtype) -> int:
    return _ROUND if dtype.itemsize < 4 else 1


def _most_rows(slots: int, n_experts: int, dtype: torch.dtype) -> int:
    """That a plan may have, whatever the loads."""
    return slots + n_experts * (_unit(dtype) - 1)


@torch.library.custom_op("llmtrain::sliced_experts", mutates_args=())
def sliced_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, token: Tensor, expert: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """The output [N D], and what the backward pass needs of it: the first product of every row of the plan [R 2F]."""
    plan = _Plan(token, expert, gate, len(down), x.dtype)
    h = x.new_empty(_most_rows(len(token), len(down), x.dtype), gate_up.shape[1])
    y = x.new_empty(plan.rows, x.shape[1])
    for e, at in plan.slices():
        torch.mm(x.index_select(0, plan.token[at]), gate_up[e].T, out=h[at])
        opening, up = h[at].chunk(2, -1)
        torch.mm(F.silu(opening).mul_(up).mul_(plan.gate[at]), down[e].T, out=y[at])
    return plan.by_token(y, len(x)), h


@torch.library.custom_op("llmtrain::sliced_experts_backward", mutates_args=())
def sliced_experts_backward(
    grad: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    token: Tensor,
    expert: Tensor,
    gate: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``x``, ``gate_up``, ``down`` and ``gate``."""
    plan = _Plan(token, expert, gate, len(down), x.dtype)
    d_gate_up, d_down = torch.empty_like(gate_up), torch.empty_like(down)
    d_x, d_gate = x.new_empty(plan.rows, x.shape[1]), gate.new_empty(plan.rows)
    for e, at in plan.slices():
        opening, up = h[at].chunk(2, -1)
        opened = F.silu(opening)
        inner = opened * up
        d_y = grad.index_select(0, plan.token[at])
        d_inner = d_y @ down[e]  # before the gate, whose own gradient is <d_y, W inner> = <W^T d_y, inner>
        d_gate[at] = (d_inner * inner).sum(-1, dtype=gate.dtype)
        torch.mm(d_y.T, inner.mul_(plan.gate[at]), out=d_down[e])
        d_inner.mul_(plan.gate[at])
        d_h = torch.empty_like(h[at])
        d_opening, d_up = d_h.chunk(2, -1)
        torch.mul(d_inner, opened, out=d_up)
        d_opening.copy_(torch.ops.aten.silu_backward(d_inner.mul_(up), opening))
        torch.mm(d_h.T, x.index_select(0, plan.token[at]), out=d_gate_up[e])
        torch.mm(d_h, gate_up[e], out=d_x[at])
    return plan.by_token(d_x, len(x)), d_gate_up, d_down, d_gate[plan.place]


@sliced_experts.register_fake
def _(
    x: Tensor, gate_up: Tensor, down: Tensor, token: Tensor, expert: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(_most_rows(len(token), len(down), x.dtype), gate_up.shape[1])


@sliced_experts_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    token: Tensor,
    expert: Tensor,
    gate: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down), torch.empty_like(gate)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else its gradient, which nobody has, would be filled with zeros
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    d_x, d_gate_up, d_down, d_gate = sliced_experts_backward(grad, *ctx.saved_tensors)
    return d_x, d_gate_up, d_down, None, None, d_gate


sliced_experts.register_autograd(_backward, setup_context=_save)


# a counter does not look into an opaque operation: every slot meets the weights of one expert, going back twice
@register_flop_formula(torch.ops.llmtrain.sliced_experts)
def _flops(x: Any, gate_up: Any, down: Any, token: Any, *_: Any, **__: Any) -> int:
    return 2 * token[0] * (gate_up[1] * gate_up[2] + down[1] * down[2])


@register_flop_formula(torch.ops.llmtrain.sliced_experts_backward)
def _backward_flops(grad: Any, x: Any, gate_up: Any, down: Any, token: Any, *_: Any, **__: Any) -> int:
    return 4 * token[0] * (gate_up[1] * gate_up[2] + down[1] * down[2])


def _inside(x: Tensor, gate_up: Tensor, down: Tensor, token: Tensor, *_: Any) -> int:
    """Of every slot a row of outputs and a plan, and of one expert's share of the slots what is between products."""
    experts = len(down)
    slots = _most_rows(len(token), experts, x.dtype)
    each = -(-slots // experts) * (2 * down.shape[2] + x.shape[1])
    return x.element_size() * (slots * x.shape[1] + each) + 4 * token.element_size() * slots


def _backward_inside(grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, token: Tensor, *_: Any) -> int:
    experts = len(down)
    slots = _most_rows(len(token), experts, x.dtype)
    each = -(-slots // experts) * (6 * down.shape[2] + 2 * x.shape[1])
    return x.element_size() * (slots * x.shape[1] + each) + 5 * token.element_size() * slots


INSIDE[torch.ops.llmtrain.sliced_experts.default] = _inside
INSIDE[torch.ops.llmtrain.sliced_experts_backward.default] = _backward_inside
