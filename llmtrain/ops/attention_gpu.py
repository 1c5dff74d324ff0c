"""Attention kernels of a GPU: flash-attn's varlen call over documents, and FlexAttention over a block mask."""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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
    bidirectional one among the prefix, whose positions take the second. Every document of ``q_seq`` must be in
    ``k_seq``.
    """
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
    flat_q, (flat_k, flat_v) = q.transpose(1, 2)[q_kept], (x.transpose(1, 2)[k_kept] for x in (k, v))  # N H K
    (q_at, q_longest), (k_at, k_longest) = (
        cumulative_lengths(q_seq, q_kept),
        cumulative_lengths(k_seq, k_kept),
    )
    ahead = -1 if window is None else window - 1
    y = _flash_attn_varlen()(
        flat_q, flat_k, flat_v, q_at, k_at, q_longest, k_longest,
        causal=causal, window_size=(ahead, 0 if causal else ahead),
    )  # fmt: skip
    out = torch.zeros_like(q.transpose(1, 2))
    out[q_kept] = y
    return out.transpose(1, 2)


def cumulative_lengths(seq: Seq, kept: Bool[Tensor, "B T"]) -> tuple[Int[Tensor, " n"], int]:
    """Where each document begins among the kept tokens laid end to end, with their number last; and the longest."""
    rows = torch.arange(len(seq.doc), device=seq.doc.device)[:, None].expand_as(seq.doc)
    key = torch.stack((rows[kept], seq.doc[kept]))
    _, counts = key.unique_consecutive(dim=1, return_counts=True)
    at = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return at, int(counts.max()) if len(counts) else 0


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
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, _: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = (q_seq.doc[b, i] == k_seq.doc[b, j]) & (k_seq.doc[b, j] != NO_DOC)
        here, there = q_seq.pos[b, i], k_seq.pos[b, j]
        ok = same & ((there <= here) | k_seq.prefix[b, j])
        return ok if window is None else ok & ((here - there).abs() < window)

    blocks = create_block_mask(seen, len(q), None, q.shape[2], k.shape[2], device=str(q.device))
    return _flex(q.is_cuda)(q, k, v, block_mask=blocks, enable_gqa=True)


@functools.cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention  # type: ignore[return-value]
