"""Experts on the tokens that were sent to them: the definition, and a fast path for each kind of machine."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.ops import backend
from llmtrain.ops.moe_sliced import sliced_experts


class Slots(NamedTuple):
    """Who works on what: a slot is one expert on one token. No pair comes twice."""

    token: Int[Tensor, " S"]  # non-decreasing
    expert: Int[Tensor, " S"]
    gate: Float[Tensor, " S"]  # what the expert's output is multiplied by; 0 leaves no trace of the slot


Tokens = Float[Tensor, "N D"]
GateUp = Float[Tensor, "E F2 D"]  # of each expert the rows of its gate, then those of its up-projection
Down = Float[Tensor, "E D F"]
Kernel = Callable[[Tokens, GateUp, Down, Slots], Tokens]


def experts(x: Tokens, gate_up: GateUp, down: Down, slots: Slots) -> Tokens:
    """The sum over the slots of a token of gate x SwiGLU of its expert; no token is dropped.

    Under autocast the products run in its dtype, which is that of the result too.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        x = x.to(dtype)
        return KERNELS[backend.choose("experts", x)](x, gate_up.to(dtype), down.to(dtype), slots)


def reference(x: Tokens, gate_up: GateUp, down: Down, slots: Slots) -> Tokens:
    """The definition: every expert on every token, weighted by the gate, which is 0 where the token was not sent."""
    weight = slots.gate.new_zeros(len(x), len(gate_up))
    weight = weight.index_put((slots.token, slots.expert), slots.gate)
    y = _swiglu(x @ gate_up.mT) @ down.mT  # E N D
    return (weight.T[..., None] * y).sum(0).to(x.dtype)


def sliced(x: Tokens, gate_up: GateUp, down: Down, slots: Slots) -> Tokens:
    """Slots sorted by expert, then plain products of each expert's slice while it is in the cache: for CPUs."""
    return sliced_experts(x, gate_up, down, *slots)[0]


def grouped(x: Tokens, gate_up: GateUp, down: Down, slots: Slots) -> Tokens:
    """Slots sorted by expert, then one grouped product for all experts, without waiting for their loads: for GPUs."""
    order = slots.expert.argsort(stable=True)
    token = slots.token[order]
    sent = slots.expert[:, None] == torch.arange(len(gate_up), device=x.device)
    ends = sent.sum(0).cumsum(0).to(torch.int32)
    h = F.grouped_mm(x[token], gate_up.mT, offs=ends)
    y = F.grouped_mm(_swiglu(h), down.mT, offs=ends) * slots.gate[order, None]
    return torch.zeros(x.shape, dtype=y.dtype, device=x.device).index_add(0, token, y).to(x.dtype)


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


KERNELS: dict[str, Kernel] = {"reference": reference, "sliced": sliced, "grouped": grouped}
