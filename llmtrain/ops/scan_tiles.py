"""The scan in chunks for the CPU: a few chunks at a time, so that what is between two products stays near the cores."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops.scan_chunks import (
    Chunks,
    Scales,
    chunks_of,
    fitted,
    grown,
    grown_doc,
    log_decay,
    passed,
    running_sum,
    scales_of,
)

# axes as in scan_chunks; K heads of a group; W their channels, K x P
_TILE = 1 << 19  # elements of a tile: 2 MB of float32


def ssd_tiled(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    doc: Int[Tensor, "B T"],
    *,
    chunk: int,
    reverse: bool = False,
) -> Float[Tensor, "B T H P"]:
    """``scan_chunks.ssd``, with a backward pass of its own that keeps nothing of size T x L.

    Eight products backward for four forward. The gradient of a log-decay needs no pass over pairs: an output is
    proportional to every decay on its way, so y dy at the later end less x dx at the earlier one, summed, is all of it.
    """
    tokens = x.shape[1]
    length, short = fitted(x, chunk)
    x, dt, b, c = (grown(part, short) for part in (x, dt, b, c))
    who = chunks_of(grown_doc(doc, short), length, reverse)
    dt = dt.unflatten(1, (-1, length)).flatten(0, 1).transpose(1, 2).contiguous()  # M H L
    total = running_sum(log_decay(dt, a), who.seen, reverse)
    return _SSD.apply(x, dt, total, b, c, who, reverse)[:, :tokens]


class _Shape(NamedTuple):
    rows: int
    chunks: int  # of a row
    length: int
    groups: int
    each: int  # heads of a group
    width: int
    n_state: int

    @property
    def heads(self) -> int:
        return self.groups * self.each

    @property
    def states(self) -> tuple[int, ...]:
        return self.rows, self.chunks, self.groups, self.n_state, self.each, self.width

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Of chunks, and of the same chunks times groups."""
        n = self.rows * self.chunks
        step = max(1, _TILE // (self.heads * self.length * max(self.length, self.width)))
        for start in range(0, n, step):
            end = min(n, start + step)
            yield slice(start, end), slice(start * self.groups, end * self.groups)

    def tokens(self, x: Tensor) -> Float[Tensor, "M L H P"]:
        return x.reshape(self.rows * self.chunks, self.length, self.heads, self.width)

    def by_group(self, x: Float[Tensor, "B T G N"]) -> Float[Tensor, "MG L N"]:
        x = x.reshape(-1, self.length, self.groups, self.n_state)
        return x.transpose(1, 2).reshape(-1, self.length, self.n_state)

    def from_group(self, x: Float[Tensor, "MG L N"]) -> Float[Tensor, "B T G N"]:
        x = x.view(-1, self.groups, self.length, self.n_state).transpose(1, 2)
        return x.reshape(self.rows, -1, self.groups, self.n_state)

    def scaled(self, x: Float[Tensor, "m L H P"], by: Float[Tensor, "m H L"]) -> Float[Tensor, "mG L W"]:
        """As products with states take it: the heads of a group side by side."""
        m, split = len(x), (self.groups, self.each)
        out = x.new_empty(m, self.groups, self.length, self.each, self.width)
        by = by.unflatten(1, split).transpose(2, 3)[..., None]
        torch.mul(x.unflatten(2, split).transpose(1, 2), by, out=out)
        return out.view(-1, self.length, self.each * self.width)

    def ungrouped(self, x: Float[Tensor, "mG L W"]) -> Float[Tensor, "m L H P"]:
        x = x.view(-1, self.groups, self.length, self.each, self.width)
        return x.transpose(1, 2).reshape(-1, self.length, self.heads, self.width)

    def by_head(
        self, x: Float[Tensor, "m L H P"], by: Float[Tensor, "m H L"] | None = None
    ) -> Float[Tensor, "mH L P"]:
        """As products over pairs of positions take it, scaled by ``by``."""
        if by is None:
            out = x.transpose(1, 2).contiguous()
        else:
            out = x.new_empty(len(x), self.heads, self.length, self.width)
            torch.mul(x.transpose(1, 2), by[..., None], out=out)
        return out.view(-1, self.length, self.width)

    def from_head(self, x: Float[Tensor, "mH L P"]) -> Float[Tensor, "m L H P"]:
        return x.view(-1, self.heads, self.length, self.width).transpose(1, 2)

    def pairs(self, x: Tensor) -> Float[Tensor, "m G K L L"]:
        return x.view(-1, self.groups, self.each, self.length, self.length)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, total: Tensor, b: Tensor, c: Tensor, who: Chunks, reverse: bool
    ) -> Tensor:
        (rows, tokens, heads, width), (groups, n_state), length = x.shape, b.shape[2:], dt.shape[2]
        s = _Shape(rows, tokens // length, length, groups, heads // groups, width, n_state)
        scales, b, c, flat = scales_of(total, who, reverse), s.by_group(b), s.by_group(c), s.tokens(x)
        scores = torch.bmm(c, b.transpose(1, 2)).view(-1, groups, length, length)
        scores.masked_fill_(~who.seen[:, None], 0.0)
        weight = dt * scales.out
        added = x.new_empty(len(b), n_state, s.each * width)
        for t, tg in s.tiles():
            torch.bmm(b[tg].transpose(1, 2), s.scaled(flat[t], weight[t]), out=added[tg])
        entering = _passed(added, scales, s, reverse)
        y = torch.empty_like(flat, memory_format=torch.contiguous_format)
        for t, tg in s.tiles():
            far = s.ungrouped(torch.bmm(c[tg], entering[tg]))
            torch.mul(far, _last(scales.into[t]), out=y[t])
            pairs = _decays(total[t], s).mul_(scores[t][:, :, None])
            near = torch.bmm(pairs.view(-1, length, length), s.by_head(flat[t], dt[t]))
            y[t].add_(s.from_head(near))
        ctx.save_for_backward(x, dt, total, b, c, who.seen, scores, weight, *scales, entering, y)
        ctx.shape, ctx.reverse = s, reverse
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return *_gradients(grads[0], ctx.saved_tensors, ctx.shape, ctx.reverse), None, None


def _gradients(grad: Tensor, saved: tuple[Tensor, ...], s: _Shape, reverse: bool) -> tuple[Tensor, ...]:
    """Of x, dt, total, b and c."""
    x, dt, total, b, c, seen, scores, weight, into, out, keep, entering, y = saved
    scales, flat, grad = Scales(into, out, keep), s.tokens(x), s.tokens(grad)
    grad_b, grad_c, pull = torch.empty_like(b), torch.empty_like(c), torch.empty_like(entering)
    for t, tg in s.tiles():
        into_far = s.scaled(grad[t], into[t])
        torch.bmm(into_far, entering[tg].transpose(1, 2), out=grad_c[tg])
        torch.bmm(c[tg].transpose(1, 2), into_far, out=pull[tg])
    pull = _passed(pull, scales, s, not reverse)  # on the state that leaves each chunk
    grad_x, grad_u = torch.empty_like(y), dt.new_empty(len(flat), s.length, s.heads)
    answered = torch.empty_like(grad_u)
    for t, tg in s.tiles():
        decays, u, gy = _decays(total[t], s), s.by_head(flat[t], dt[t]), s.by_head(grad[t])
        pairs = decays * scores[t][:, :, None]
        near = torch.bmm(pairs.view(-1, s.length, s.length).transpose(1, 2), gy)
        torch.bmm(gy, u.transpose(1, 2), out=pairs.view(-1, s.length, s.length))
        score = pairs.mul_(decays).sum(2).masked_fill_(~seen[t][:, None], 0.0).flatten(0, 1)
        torch.bmm(s.scaled(flat[t], weight[t]), pull[tg].transpose(1, 2), out=grad_b[tg])
        far = s.ungrouped(torch.bmm(b[tg], pull[tg]))
        grad_b[tg] += torch.bmm(score.transpose(1, 2), c[tg])
        grad_c[tg] += torch.bmm(score, b[tg])
        along = far.mul_(_last(out[t])).add_(s.from_head(near))  # the gradient of u = dt x
        torch.sum(flat[t] * along, -1, out=grad_u[t])
        torch.mul(along, _last(dt[t]), out=grad_x[t])
        torch.sum(grad[t] * y[t], -1, out=answered[t])
    grad_u, answered = grad_u.transpose(1, 2), answered.transpose(1, 2)
    grad_total = answered - grad_u * dt
    grad_total[..., 0 if reverse else -1] += _of_edges(entering, pull, s, reverse)
    return grad_x.view(x.shape), grad_u, grad_total, s.from_group(grad_b), s.from_group(grad_c)


def _of_edges(entering: Tensor, pull: Tensor, s: _Shape, reverse: bool) -> Float[Tensor, "M H"]:
    """The gradient of a chunk's whole log-decay: its state when it leaves, times the pull on it."""
    here, after = (slice(1, None), slice(0, -1)) if reverse else (slice(0, -1), slice(1, None))
    left, on = entering.view(s.states)[:, after], pull.view(s.states)[:, here]
    out = pull.new_zeros(s.rows, s.chunks, s.groups, s.each)
    out[:, here] = (left * on).sum((3, 5))
    return out.view(-1, s.heads)


def _passed(added: Tensor, scales: Scales, s: _Shape, reverse: bool) -> Tensor:
    by = scales.keep.view(s.rows, s.chunks, s.groups, 1, s.each, 1)
    parts = added.view(s.states)
    return passed(parts, by, torch.zeros_like(parts[:, 0]), reverse)[0].view(added.shape)


def _decays(total: Float[Tensor, "m H L"], s: _Shape) -> Float[Tensor, "m G K L L"]:
    """From j to i, where i hears j; elsewhere any number up to 1, which a score of 0 meets."""
    return s.pairs(torch.sub(total[..., :, None], total[..., None, :]).clamp_max_(0.0).exp_())


def _last(x: Float[Tensor, "m H L"]) -> Float[Tensor, "m L H 1"]:
    return x.transpose(1, 2)[..., None]
