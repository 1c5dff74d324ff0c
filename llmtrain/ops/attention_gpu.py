"""Attention kernels of a GPU: flash-attn's varlen call over documents, and FlexAttention over a block mask."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from llmtrain.ops import dataless
from llmtrain.ops.mask import Heads, KeyHeads
from llmtrain.types import NO_DOC, Seq, Visibility


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
    """flash-attn's ``flash_attn_varlen_func`` on documents laid end to end; half precision on a GPU.

    A prefix is an initial segment of its document, so PREFIX is two calls: a causal one over everything and a
    bidirectional one among the prefix, whose positions take the second. Queries are aligned with the last keys of their
    document, so they may be the next tokens of a stream.
    """
    if not dataless.has_data(q):
        return dataless.flash(q, k, v, q_seq, k_seq, visibility=visibility)
    if visibility is not Visibility.PREFIX:
        causal = visibility is Visibility.CAUSAL
        return _varlen(
            q, k, v, q_seq, k_seq, q_seq.doc != NO_DOC, k_seq.doc != NO_DOC, causal=causal, window=window
        )
    every = _varlen(
        q, k, v, q_seq, k_seq, q_seq.doc != NO_DOC, k_seq.doc != NO_DOC, causal=True, window=window
    )
    q_prefix, k_prefix = (s.prefix & (s.doc != NO_DOC) for s in (q_seq, k_seq))
    among = _varlen(q, k, v, q_seq, k_seq, q_prefix, k_prefix, causal=False, window=window)
    return torch.where(q_prefix[:, None, :, None], among, every)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, q_seq: Seq, k_seq: Seq, q_kept: Bool[Tensor, "B T"], k_kept: Bool[Tensor, "B S"],
    *, causal: bool, window: int | None,
) -> Tensor:  # fmt: skip
    q_at, k_at, k_kept = document_bounds(q_seq, k_seq, q_kept, k_kept)
    flat_q, (flat_k, flat_v) = q.transpose(1, 2)[q_kept], (x.transpose(1, 2)[k_kept] for x in (k, v))  # N H K
    out = torch.zeros_like(q.transpose(1, 2))
    if not (len(flat_q) and len(flat_k)):
        return out.transpose(1, 2)
    ahead = -1 if window is None else window - 1
    y = _flash_attn_varlen()(
        flat_q, flat_k, flat_v, q_at, k_at, longest(q_at), longest(k_at),
        causal=causal, window_size=(ahead, 0 if causal else ahead),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    out[q_kept] = y
    return out.transpose(1, 2)


def document_bounds(
    q_seq: Seq, k_seq: Seq, q_kept: Bool[Tensor, "B T"], k_kept: Bool[Tensor, "B S"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Bool[Tensor, "B S"]]:
    """Where each document that has queries begins among the kept tokens laid end to end, in either stream.

    The last entry is the number of tokens. Keys of other documents (earlier ones, when queries are the next tokens of
    a stream) are dropped: the third result says which are left.
    """
    rows = torch.arange(len(q_seq.doc), device=q_seq.doc.device)[:, None] << 32
    q_name, k_name = rows + q_seq.doc, rows + k_seq.doc
    names, q_counts = q_name[q_kept].unique_consecutive(return_counts=True)
    k_kept = k_kept & torch.isin(k_name, names)
    k_counts = torch.bincount(torch.searchsorted(names, k_name[k_kept]), minlength=len(names))
    q_at, k_at = (F.pad(counts.cumsum(0), (1, 0)).to(torch.int32) for counts in (q_counts, k_counts))
    return q_at, k_at, k_kept


def longest(bounds: Int[Tensor, " n"]) -> int:
    return int(bounds.diff().max())


@functools.cache
def _flash_attn_varlen() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func


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
    from torch.nn.attention.flex_attention import create_block_mask

    q_doc, k_doc, q_pos, k_pos, prefix = q_seq.doc, k_seq.doc, q_seq.pos, k_seq.pos, k_seq.prefix
    reach = window or 1 << 30
    blocks = create_block_mask(
        lambda b, _, i, j: (
            (q_doc[b, i] == k_doc[b, j])
            & (k_doc[b, j] != NO_DOC)
            & ((k_pos[b, j] <= q_pos[b, i]) | prefix[b, j])
            & ((q_pos[b, i] - k_pos[b, j]).abs() < reach)
        ),
        len(q), None, q.shape[2], k.shape[2], device=str(q.device),
    )  # fmt: skip
    return _flex(q.is_cuda)(q, k, v, block_mask=blocks, enable_gqa=True)


@functools.cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention  # type: ignore[return-value]
