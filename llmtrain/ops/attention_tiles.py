"""Attention for a CPU in bfloat16: plain matrix products, over the queries of a few rows and heads at a time."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops import dataless
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.mask import Heads, KeyHeads, mask
from llmtrain.ops.once import once_a_batch
from llmtrain.types import Seq, Visibility

_TILE = 1 << 22  # scores at a time: 8 MB of bfloat16
_QUERIES = 256  # of a tile at most: more would look at more keys that causal ones may not see


class Tile(NamedTuple):
    """Some queries of some rows, and the keys that any of them sees."""

    queries: slice
    keys: slice
    edge: slice  # of these keys those that not all of the queries see
    bias: (
        Float[Tensor, "b 1 1 t s"] | None
    )  # at the edge: 0 what is seen, -inf what is not; none: there is no edge
    blind: Bool[Tensor, "b 1 t 1"] | None  # queries that see nothing, where there are some


class Band(NamedTuple):
    """Some rows, with all their queries."""

    rows: slice
    tiles: list[Tile]


def tiled(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """The reference, tile by tile; of its scores nothing is kept, and they are made again for the backward pass.

    Scores are rounded to the dtype of ``q``, as the reference rounds them; softmax is computed in at least float32.
    """
    (n_rows, n_heads, n_queries, _), (n_kv_heads, n_keys) = q.shape, k.shape[1:3]
    past = visibility is Visibility.CAUSAL and q_seq is k_seq
    queries = min(_QUERIES, max(1, -(-n_queries // 2))) if past else min(_QUERIES, n_queries)
    of_a_head = max(1, queries * n_keys)
    rows = min(n_rows, max(1, _TILE // (n_heads * of_a_head)))
    groups = min(n_kv_heads, max(1, _TILE // (n_heads // n_kv_heads * of_a_head)))
    bands = plan(q_seq, k_seq, past=past, window=window, n_rows=rows, n_queries=queries, dtype=q.dtype)
    with torch.autocast(q.device.type, enabled=False):
        return _Tiled.apply(q, k, v, bands, groups)


@once_a_batch
def plan(
    q_seq: Seq,
    k_seq: Seq,
    *,
    past: bool,
    window: int | None,
    n_rows: int,
    n_queries: int,
    dtype: torch.dtype,
) -> list[Band]:
    """All the tiles, of so many rows and queries at most. ``past``: keys are the queries, and later ones unseen."""
    (rows, tokens), n_keys = q_seq.doc.shape, k_seq.doc.shape[1]
    bands = []
    for r in range(0, rows, n_rows):
        of, tiles = slice(r, min(r + n_rows, rows)), []
        for t in range(0, tokens, n_queries):
            at = slice(t, min(t + n_queries, tokens))
            heard = slice(0, at.stop if past else n_keys)
            seen = mask(_part(q_seq, of, at), _part(k_seq, of, heard), window)
            tiles.append(_tile(seen, at, dtype) if dataless.has_data(seen) else _expected(seen, at, dtype))
        bands.append(Band(of, tiles))
    return bands


def _part(seq: Seq, rows: slice, at: slice) -> Seq:
    return Seq(*(x[rows, at] for x in seq))


def _tile(seen: Bool[Tensor, "b t s"], queries: slice, dtype: torch.dtype) -> Tile:
    blind = ~seen.any(2, keepdim=True)
    keys = _ends(seen.any(1).any(0))
    seen = seen[:, :, keys] | blind  # whose softmax would be NaN
    edge = _ends(~seen.all(1).all(0))
    bias = None
    if edge.stop > edge.start:
        hidden = ~seen[:, None, None, :, edge]
        bias = torch.zeros(hidden.shape, dtype=dtype, device=seen.device).masked_fill_(hidden, -math.inf)
    return Tile(queries, keys, edge, bias, blind[:, None] if blind.any() else None)


def _expected(seen: Bool[Tensor, "b t s"], queries: slice, dtype: torch.dtype) -> Tile:
    """Without data: all keys, and an edge as wide as there are queries."""
    b, t, s = seen.shape
    edge = slice(max(0, s - t), s)
    bias = torch.empty(b, 1, 1, t, _n(edge), dtype=dtype, device=seen.device)
    return Tile(queries, slice(0, s), edge, bias, None)


def _ends(wanted: Bool[Tensor, " N"]) -> slice:
    """From the first to after the last that is set; empty where there is none."""
    found = wanted.nonzero()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bands: list[Band], groups: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.bands, ctx.groups = bands, groups
        out = _like(q)
        work = _Work(q, k, bands, groups)
        for band, heads, kv_heads in work.parts():
            keys, values = (x[band.rows, kv_heads].flatten(0, 1) for x in (k, v))
            for tile in band.tiles:
                at = band.rows, heads, tile.queries
                if tile.keys.stop == tile.keys.start:
                    out[at] = 0
                    continue
                weights = work.weights(work.of_queries(q[at]), keys[:, tile.keys], tile)
                y = (weights @ values[:, tile.keys]).view(out[at].shape)
                out[at] = y if tile.blind is None else y.masked_fill(tile.blind, 0.0)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        work = _Work(q, k, ctx.bands, ctx.groups)
        grad_q, grad_k, grad_v = _like(q), _like(k), _like(v)
        to_keys, to_values = (_Sum(grad, work.most_heads) for grad in (grad_k, grad_v))
        for band, heads, kv_heads in work.parts():
            keys, values = (x[band.rows, kv_heads].flatten(0, 1) for x in (k, v))
            # the last first: it may meet all the keys, so that there is a sum to add to
            for tile in reversed(band.tiles):
                at = band.rows, heads, tile.queries
                if tile.keys.stop == tile.keys.start:
                    grad_q[at] = 0
                    continue
                x, near = work.of_queries(q[at]), keys[:, tile.keys]
                g = grads[0][at]
                g = work.of_queries(g if tile.blind is None else g.masked_fill(tile.blind, 0.0))
                weights = work.weights(x, near, tile)
                to_values.add(weights.mT @ g, tile.keys)
                pull = torch.bmm(g, values[:, tile.keys].mT, out=work.scores)
                torch._softmax_backward_data(pull, weights, -1, pull.dtype, grad_input=pull)
                grad_q[at] = torch.baddbmm(x, pull, near, beta=0, alpha=work.scale).view(q[at].shape)
                to_keys.add(torch.baddbmm(near, pull.mT, x, beta=0, alpha=work.scale), tile.keys)
            to_keys.write(band.rows, kv_heads)
            to_values.write(band.rows, kv_heads)
        return grad_q, grad_k, grad_v, None, None


class _Sum:
    """What the tiles of a band give to each key, not rounded in between; what one tile alone gives is not copied."""

    def __init__(self, out: Tensor, most_heads: int):
        self._out, self._most_heads = out, most_heads
        self._buffer: Tensor | None = None  # for all bands, once one needs it
        self._first: Tensor | None = None  # of this band, if it went to all the keys
        self._wide: Tensor | None = None  # the sum, once there is a second

    def add(self, part: Float[Tensor, "n s K"], keys: slice) -> None:
        if self._first is None and self._wide is None and _n(keys) == self._out.shape[2]:
            self._first = part
            return
        if self._wide is None:
            if self._buffer is None:
                shape, wide = (self._most_heads, *self._out.shape[2:]), at_least_float32(part.dtype)
                self._buffer = part.new_empty(shape, dtype=wide)
            self._wide = self._buffer[: len(part)]
            self._wide.zero_() if self._first is None else self._wide.copy_(self._first)
        self._wide[:, keys] += part

    def write(self, rows: slice, heads: slice) -> None:
        """The sum, as the gradient of some heads of some rows; the next band begins anew."""
        out = self._out[rows, heads]
        found = self._first if self._wide is None else self._wide
        out.zero_() if found is None else out.copy_(found.view(out.shape))
        self._first = self._wide = None


class _Work:
    """Two buffers of scores, used again for every tile: fresh memory costs a CPU more than the arithmetic."""

    def __init__(self, q: Tensor, k: Tensor, bands: list[Band], groups: int):
        (_, n_heads, _, d), n_kv_heads = q.shape, k.shape[1]
        self.scale, self._each = 1 / math.sqrt(d), n_heads // n_kv_heads
        self._bands, self._groups, self._n_kv_heads = bands, groups, n_kv_heads
        rows = max((_n(band.rows) for band in bands), default=0)
        area = max((_n(t.queries) * _n(t.keys) for band in bands for t in band.tiles), default=0)
        self.most_heads = rows * groups  # of keys, those of all the rows of a part
        self._buffers = [q.new_empty(self.most_heads * self._each * area) for _ in range(2)]
        self.scores: Tensor  # of the last ``weights``, free to be written over

    def parts(self) -> Iterator[tuple[Band, slice, slice]]:
        """Every band, with some heads of queries and the heads of keys that they share."""
        for band in self._bands:
            for g in range(0, self._n_kv_heads, self._groups):
                end = min(g + self._groups, self._n_kv_heads)
                yield band, slice(g * self._each, end * self._each), slice(g, end)

    def weights(
        self, x: Float[Tensor, "n t K"], keys: Float[Tensor, "n s K"], tile: Tile
    ) -> Float[Tensor, "n t s"]:
        """Softmax of the scaled products of queries and keys, as far as one sees the other."""
        shape = len(x), x.shape[1], keys.shape[1]
        self.scores, weights = (buffer[: math.prod(shape)].view(shape) for buffer in self._buffers)
        torch.baddbmm(self.scores, x, keys.mT, beta=0, alpha=self.scale, out=self.scores)
        if tile.bias is not None:
            b, t = len(tile.bias), tile.bias.shape[3]
            self.scores.view(b, -1, self._each, t, shape[2])[..., tile.edge] += tile.bias
        return torch.softmax(self.scores, -1, out=weights)

    def of_queries(self, x: Float[Tensor, "b h t K"]) -> Float[Tensor, "n ht K"]:
        """The queries that share a key head one after the other."""
        return x.reshape(-1, self._each * x.shape[2], x.shape[3])


def _n(part: slice) -> int:
    return int(part.stop - part.start)


def _like(x: Tensor) -> Tensor:
    """Laid out by token, as what comes before attention makes it and what follows reads it."""
    return x.new_empty(len(x), x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
