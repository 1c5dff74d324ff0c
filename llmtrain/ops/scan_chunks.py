"""The scan in chunks: what lies in one chunk by matrix products, what lies before it by a state."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmtrain.types import NO_DOC

# axes: B rows, T positions, H heads, P head width, G groups (H / G heads share b and c), N d_state,
# C chunks of a row, M chunks of all rows, L positions of a chunk


class State(NamedTuple):
    """What the tokens so far left for the next ones, which hear it if they are of the same document."""

    h: Float[Tensor, "B H N P"]
    doc: Int[Tensor, " B"]


class Chunks(NamedTuple):
    """Who hears whom in chunks, all by equal document numbers, so that no decay has to stand in for a boundary."""

    seen: Bool[Tensor, "M L L"]  # i hears j of its own chunk
    hears: Bool[Tensor, "M L"]  # it hears the state that enters its chunk
    gives: Bool[Tensor, "M L"]  # it is heard through the state that leaves its chunk
    keeps: Bool[Tensor, "B C"]  # what enters the chunk also leaves it


def chunks_of(
    doc: Int[Tensor, "B T"], length: int, reverse: bool, before: Int[Tensor, " B"] | None = None
) -> Chunks:
    """``before`` is the document of the token before the first chunk (after the last, where time is reversed)."""
    d = doc.unflatten(1, (-1, length))
    real = d != NO_DOC
    i = torch.arange(length, device=doc.device)
    past = i[:, None] <= i if reverse else i[:, None] >= i
    edge = d[..., 0] if reverse else d[..., -1]  # the token that time leaves the chunk by
    none = torch.full_like(edge[:, :1], NO_DOC) if before is None else before[:, None]
    entered = torch.cat((edge[:, 1:], none) if reverse else (none, edge[:, :-1]), 1)
    seen = (d[..., :, None] == d[..., None, :]) & real[..., None, :] & past
    hears = (d == entered[..., None]) & real
    gives = (d == edge[..., None]) & real
    return Chunks(
        seen.flatten(0, 1), hears.flatten(0, 1), gives.flatten(0, 1), (entered == edge) & (edge != NO_DOC)
    )


def log_decay(dt: Float[Tensor, "M H L"], a: Float[Tensor, " H"]) -> Float[Tensor, "M H L"]:
    """Of one step, and no further down than to the square of what the dtype resolves.

    So the sums of a chunk stay where their differences are exact to 1e-4 in float32, however large a step is.
    """
    return (dt * a[:, None]).clamp(min=2 * math.log(torch.finfo(dt.dtype).eps))


def running_sum(
    x: Float[Tensor, "M H L"], seen: Bool[Tensor, "M L L"], reverse: bool
) -> Float[Tensor, "M H L"]:
    """Sums of what each position and those before it in its document hold, within the chunk.

    By doubling (Hillis and Steele 1986): a sum of one document has no term of another, so it has the same bits
    whatever stands there, and no rounding of theirs. ``torch.cumsum`` has neither, nor a deterministic kernel on GPUs.
    """
    n, step = x.shape[-1], 1
    while step < n:
        near = seen.diagonal(step if reverse else -step, 1, 2)[
            :, None
        ]  # the one ``step`` back is of the same document
        heard = x[..., step:] if reverse else x[..., :-step]
        x = x + F.pad(heard * near, (0, step) if reverse else (step, 0))
        step *= 2
    return x


def fitted(x: Tensor, chunk: int) -> tuple[int, int]:
    """The length of a chunk, for no row is cut longer than it is, and what a row [B T ...] lacks to whole chunks."""
    length = max(1, min(chunk, x.shape[1]))
    return length, -x.shape[1] % length


def grown(x: Tensor, n: int) -> Tensor:
    """``n`` more positions, which have dt = 0: nobody hears them, and states pass through."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, n)) if n else x


def grown_doc(doc: Int[Tensor, "B T"], n: int) -> Int[Tensor, "B S"]:
    """The last document goes on, so that its state does too."""
    return torch.cat((doc, doc[:, -1:].expand(-1, n)), 1) if n else doc


def ssd(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    doc: Int[Tensor, "B T"],
    *,
    chunk: int,
    reverse: bool = False,
    state: State | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H N P"]]:
    """The outputs, and the state after them: state space duality (Dao and Gu 2024, section 6) in plain products.

    Compilers and GPUs fuse and differentiate it as it is; ``scan_tiles`` is the same for the CPU.
    """
    (rows, tokens, heads, width), (groups, n_state) = x.shape, b.shape[2:]
    length, short = fitted(x, chunk)
    x, dt, b, c = (grown(part, short) for part in (x, dt, b, c))
    who = chunks_of(grown_doc(doc, short), length, reverse, state.doc if state else None)
    each = heads // groups
    dt = dt.unflatten(1, (-1, length)).flatten(0, 1).transpose(1, 2)  # M H L
    total = running_sum(log_decay(dt, a), who.seen, reverse)
    scales = scales_of(total, who, reverse)
    u = x.unflatten(1, (-1, length)).flatten(0, 1).transpose(1, 2) * dt[..., None]
    u = u.unflatten(1, (groups, each))  # M G K L P
    b, c = (part.unflatten(1, (-1, length)).flatten(0, 1).transpose(1, 2) for part in (b, c))  # M G L N
    scores = (c @ b.transpose(2, 3)).masked_fill(~who.seen[:, None], 0.0)
    decays = (total[..., :, None] - total[..., None, :]).masked_fill(~who.seen[:, None], 0.0).exp()
    near = (decays.unflatten(1, (groups, each)) * scores[:, :, None]) @ u
    out = (u * scales.out.unflatten(1, (groups, each))[..., None]).transpose(2, 3).flatten(3)  # M G L KP
    added = (b.transpose(2, 3) @ out).view(rows, -1, groups, n_state, each, width)
    first = (
        torch.zeros_like(added[:, 0])
        if state is None
        else state.h.unflatten(1, (groups, each)).transpose(2, 3)
    )
    entering, last = passed(added, scales.keep.view(rows, -1, groups, 1, each, 1), first, reverse)
    far = (c @ entering.flatten(0, 1).flatten(3)).unflatten(-1, (each, width)).transpose(2, 3)
    y = near + far * scales.into.unflatten(1, (groups, each))[..., None]
    y = y.flatten(1, 2).transpose(1, 2).reshape(rows, -1, heads, width)[:, :tokens]
    return y, last.transpose(2, 3).flatten(1, 2)


class Scales(NamedTuple):
    into: Float[Tensor, "M H L"]  # of the state that enters, at each position
    out: Float[Tensor, "M H L"]  # of each position, in the state that leaves
    keep: Float[Tensor, "B C H"]  # of the state that enters, in the one that leaves


def scales_of(total: Float[Tensor, "M H L"], who: Chunks, reverse: bool) -> Scales:
    """Decays from sums of log-decays; what is not of one document is left out before it could overflow."""
    edge = total[..., :1] if reverse else total[..., -1:]
    keep = edge[..., 0].exp().unflatten(0, who.keeps.shape) * who.keeps[..., None]
    out = (edge - total).masked_fill(~who.gives[:, None], 0.0).exp() * who.gives[:, None]
    return Scales(total.exp() * who.hears[:, None], out, keep)


def passed(added: Tensor, keep: Tensor, first: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk [B C ...], and the one that leaves the last, from what each chunk adds."""
    h, entering = first, []
    n = added.shape[1]
    for i in reversed(range(n)) if reverse else range(n):
        entering.append(h)
        h = torch.addcmul(added[:, i], h, keep[:, i])
    return torch.stack(entering[::-1] if reverse else entering, 1), h
