"""Attention to what ``visible`` allows: the definition, and a fast path for each kind of machine."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.ops import attention_gpu, attention_tiles, backend, dataless
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.mask import Heads, Kernel, KeyHeads, mask
from llmtrain.ops.once import once_a_batch
from llmtrain.types import NO_DOC, Seq, Visibility


def attend(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """Softmax attention of every position to what it may see; zero for a position that sees nothing.

    ``G`` divides ``H``: each key head serves H / G query heads (GQA). ``visibility`` is what the objective promised of
    ``k_seq.prefix``, so that a kernel can be chosen without looking at the data.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)  # norms leave them wide, and kernels want one dtype
    name = backend.choose("attention", q)
    return KERNELS[name](q, k, v, q_seq, k_seq, visibility=visibility, window=window)


def reference(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """The definition, with the mask written out and the softmax in at least float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)).to(at_least_float32(q.dtype)) / math.sqrt(q.shape[-1])
    seen = mask(q_seq, k_seq, window)[:, None]
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return weights.masked_fill(~seen, 0.0).to(v.dtype) @ v  # a row of -inf alone has made NaN


def masked(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """One SDPA call with the mask written out: always right, and the work of full attention."""
    seen = mask(q_seq, k_seq, window)
    blind = ~seen.any(-1, keepdim=True)  # padding: let it see everything, then forget it
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=(seen | blind)[:, None], enable_gqa=True)
    return y.masked_fill(blind[:, None], 0.0)


def by_document(
    q: Heads,
    k: KeyHeads,
    v: KeyHeads,
    q_seq: Seq,
    k_seq: Seq,
    *,
    visibility: Visibility,
    window: int | None = None,
) -> Heads:
    """SDPA without a mask: rows of one document in one call, the documents of other rows one by one.

    Half the work of ``masked`` under CAUSAL. What has no such form goes to ``masked``: windows, prefixes,
    cross-attention, compiled graphs (shapes would depend on the data), and many short documents, where small calls
    cost more than they save.
    """
    apart = q_seq is not k_seq or visibility is Visibility.PREFIX or window is not None
    if apart or torch.compiler.is_compiling():
        return masked(q, k, v, q_seq, k_seq, visibility=visibility, window=window)
    n_rows, n_tokens = q_seq.doc.shape
    documents = lengths(q_seq) if dataless.has_data(q) else [[n_tokens]] * n_rows
    mixed = [r for r, n in enumerate(documents) if n != [n_tokens]]
    if sum(len(documents[r]) for r in mixed) > 4 * len(mixed):
        return masked(q, k, v, q_seq, k_seq, visibility=visibility, window=window)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal = visibility is Visibility.CAUSAL
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    if not mixed:
        return sdpa(q, k, v)
    whole = [r for r in range(n_rows) if r not in mixed]
    out: dict[int, Tensor] = {}
    if whole:  # not q[whole], whose gradient is scattered number by number
        rows = torch.tensor(whole, device=q.device)
        out |= zip(whole, sdpa(*(x.index_select(0, rows) for x in (q, k, v))).split(1), strict=True)
    for r in mixed:
        sizes = [*documents[r], n_tokens - sum(documents[r])]  # the last part is padding
        parts = zip(*(x[r : r + 1].split(sizes, 2) for x in (q, k, v)), strict=True)
        *seen, blind = parts
        out[r] = torch.cat([*(sdpa(*part) for part in seen), torch.zeros_like(blind[0])], 2)
    return torch.cat([out[r] for r in range(n_rows)])


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
    """``attention_tiles.tiled``, which plans its tiles by the data: compiled graphs may not, and go to ``masked``.

    So do the few new tokens of a step of generation, for which planning costs more than it saves.
    """
    if torch.compiler.is_compiling() or q.shape[2] < 16:
        return masked(q, k, v, q_seq, k_seq, visibility=visibility, window=window)
    return attention_tiles.tiled(q, k, v, q_seq, k_seq, visibility=visibility, window=window)


@once_a_batch
def lengths(seq: Seq) -> list[list[int]]:
    """The number of tokens of every document of every row, in order; padding is left out."""
    real = (doc[doc != NO_DOC] for doc in seq.doc.cpu().numpy())
    return [np.diff(np.flatnonzero(np.diff(doc, prepend=NO_DOC, append=NO_DOC))).tolist() for doc in real]


KERNELS: dict[str, Kernel] = {
    "reference": reference,
    "masked": masked,
    "by_document": by_document,
    "tiled": tiled,
    "flash": attention_gpu.flash,
    "flex": attention_gpu.flex,
}
