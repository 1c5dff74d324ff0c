"""Attention kernels of a GPU: FlashAttention's varlen call over documents, and FlexAttention over a block mask."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmtrain.ops import dataless
from llmtrain.ops.mask import Heads, KeyHeads
from llmtrain.ops.once import once_a_batch
from llmtrain.types import NO_DOC, Seq, Visibility


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled graphs end before it and go on behind it
def flash(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """FlashAttention-2 (Dao 2023) over documents laid end to end; half precision on a GPU.

    By the package flash-attn where it is installed, else by the same kernels as torch builds them. A prefix is an
    initial segment of its document, so PREFIX is two calls: a causal one over everything and a bidirectional one among
    the prefix, whose positions take the second. Queries are aligned with the last keys of their document, so they may
    be the next tokens of a stream.
    """
    if not dataless.has_data(q):
        return dataless.flash(q, k, v, q_seq, k_seq, visibility=visibility)
    a, b, c = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # N H K
    every = _packing(q_seq, k_seq, among_prefix=False)
    y = _varlen(a, b, c, every, causal=visibility is not Visibility.BIDIRECTIONAL, window=window)
    if every.queries is not None:
        y = torch.zeros_like(a).index_copy(0, every.queries, y)
    elif every.padding is not None:
        y = y.masked_fill(every.padding, 0.0)
    if visibility is Visibility.PREFIX:
        among = _packing(q_seq, k_seq, among_prefix=True)
        assert among.queries is not None
        y = y.index_copy(0, among.queries, _varlen(a, b, c, among, causal=False, window=window))
    return y.unflatten(0, (len(q), -1)).transpose(1, 2)


class Packing(NamedTuple):
    """Where documents lie among the kept positions of two streams, whose rows are laid end to end."""

    queries: Int[Tensor, " n"] | None  # the kept ones; none: all are, and padding is a document like others
    keys: Int[Tensor, " m"] | None
    q_bounds: Int[Tensor, " d"]  # int32: where each document begins among the kept, and their number
    k_bounds: Int[Tensor, " d"]
    q_longest: int  # of the documents
    k_longest: int
    padding: Bool[Tensor, "N 1 1"] | None  # among all positions, where there is any


def _varlen(
    q: Float[Tensor, "N H K"], k: Float[Tensor, "M G K"], v: Float[Tensor, "M G K"], of: Packing,
    *, causal: bool, window: int | None,
) -> Float[Tensor, "n H K"]:  # fmt: skip
    """Attention of the kept queries to the kept keys of their documents."""
    if of.queries is not None:
        q = q[of.queries]
    if of.keys is not None:
        k, v = k[of.keys], v[of.keys]
    if not (len(q) and len(k)):
        return torch.zeros_like(q)
    ahead = -1 if window is None else window - 1
    return _kernel(
        q, k, v, of.q_bounds, of.k_bounds, of.q_longest, of.k_longest,
        window_size=(ahead, 0 if causal else ahead),
    )  # fmt: skip


def _by_flash_attn(*inputs: Any, window_size: tuple[int, int]) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        *inputs, window_size=window_size, causal=window_size[1] == 0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _by_torch(*inputs: Any, window_size: tuple[int, int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    y = varlen_attn(
        *inputs, window_size=window_size, enable_gqa=True
    )  # which asks torch itself for determinism
    assert isinstance(y, Tensor)
    return y


# (q, k, v, bounds of q, of k, longest of q, of k, window_size); a window of (n, 0) is causal
_kernel = _by_flash_attn if importlib.util.find_spec("flash_attn") else _by_torch


@once_a_batch
def _packing(q_seq: Seq, k_seq: Seq, *, among_prefix: bool) -> Packing:
    if q_seq is k_seq and not among_prefix:
        bounds, longest = _runs(_names(q_seq).flatten())
        padding = (q_seq.doc == NO_DOC).flatten()[:, None, None]
        return Packing(None, None, bounds, bounds, longest, longest, padding if bool(padding.any()) else None)
    q_kept, k_kept = (
        (s.doc != NO_DOC) & s.prefix if among_prefix else s.doc != NO_DOC for s in (q_seq, k_seq)
    )
    q_names, k_names = _names(q_seq), _names(k_seq)
    k_kept = k_kept & torch.isin(k_names, q_names[q_kept])  # not those of documents that have no query
    # of a document without keys, the queries see nothing
    q_kept = q_kept & torch.isin(q_names, k_names[k_kept])
    q_bounds, q_longest = _runs(q_names[q_kept])
    k_bounds, k_longest = _runs(k_names[k_kept])
    queries, keys = (kept.flatten().nonzero()[:, 0] for kept in (q_kept, k_kept))
    return Packing(queries, keys, q_bounds, k_bounds, q_longest, k_longest, None)


def _names(seq: Seq) -> Int[Tensor, "B T"]:
    """A number for each document, other in other rows."""
    return (torch.arange(len(seq.doc), device=seq.doc.device)[:, None] << 32) + seq.doc


def _runs(names: Int[Tensor, " n"]) -> tuple[Int[Tensor, " d"], int]:
    """Where each run of equal names begins, and the number of names; the length of the longest run."""
    counts = names.unique_consecutive(return_counts=True)[1]
    return F.pad(counts.cumsum(0), (1, 0)).to(torch.int32), int(counts.max()) if len(counts) else 0


def flex(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """FlexAttention: any visibility in one compiled kernel that skips the blocks nobody sees."""
    if not dataless.has_data(q):
        return dataless.flex(q, k, v)
    blocks = _blocks(q_seq, k_seq, window=window)
    width = q.shape[-1]
    missing = max(0, _NARROWEST - width)  # zeros change no product
    q, k, v = (F.pad(x, (0, missing)) if missing else x for x in (q, k, v))
    apart = q.is_cuda and not torch.compiler.is_compiling()
    y = (_compiled_flex() if apart else _flex)(q, k, v, block_mask=blocks, enable_gqa=True, scale=width**-0.5)
    return y[..., :width]


@once_a_batch
def _blocks(q_seq: Seq, k_seq: Seq, *, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    q_doc, k_doc, q_pos, k_pos, prefix = q_seq.doc, k_seq.doc, q_seq.pos, k_seq.pos, k_seq.prefix
    reach = window or 1 << 30
    return create_block_mask(
        lambda b, _, i, j: (
            (q_doc[b, i] == k_doc[b, j])
            & (k_doc[b, j] != NO_DOC)
            & ((k_pos[b, j] <= q_pos[b, i]) | prefix[b, j])
            & ((q_pos[b, i] - k_pos[b, j]).abs() < reach)
        ),
        len(q_doc), None, q_doc.shape[1], k_doc.shape[1], device=str(q_doc.device),
    )  # fmt: skip


_NARROWEST = 16  # a head, for its compiled kernel


def _flex(*inputs: Tensor, **options: Any) -> Tensor:
    from torch.nn.attention import flex_attention

    kernel: Callable[..., Tensor] = (
        flex_attention.flex_attention
    )  # of its overloads, the one without statistics
    return kernel(*inputs, **options)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(_flex)
