"""Kernels of GPUs are called as the definition asks: a CPU answers by plain implementations of what they promise."""

import math

import pytest
import torch
from torch import Tensor

from llmtrain.ops import attention_gpu, backend
from llmtrain.ops.attention import KERNELS, attend
from llmtrain.types import Seq, Visibility
from tests.streams import STREAMS, assert_close, heads, streams, value_and_gradients, visibilities, windows
from tests.tiny import stream


def plain_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """FlashAttention's varlen contract: document i is q[cu_q[i]:cu_q[i+1]]; masks are aligned to the bottom right."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and len(cu_q) == len(cu_k)
    assert q.ndim == k.ndim == v.ndim == 3 and min(len(q), len(k)) > 0
    sizes_q, sizes_k = cu_q.diff().tolist(), cu_k.diff().tolist()
    assert (cu_q[-1], cu_k[-1]) == (len(q), len(k))
    assert (max_q, max_k) == (max(sizes_q), max(sizes_k))
    out = []
    group = q.shape[1] // k.shape[1]
    for a, b, c in zip(q.split(sizes_q), k.split(sizes_k), v.split(sizes_k), strict=True):
        i = torch.arange(len(a))[:, None] + len(b) - len(a)
        j = torch.arange(len(b))[None]
        left, right = window_size
        seen = torch.ones(len(a), len(b), dtype=torch.bool)
        seen &= (j >= i - left) | (left < 0)
        seen &= (j <= i + right) | (right < 0)
        scores = torch.einsum("ihk,jhk->hij", a, b.repeat_interleave(group, 1)) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1).masked_fill(~seen, 0.0)
        out.append(torch.einsum("hij,jhk->ihk", weights, c.repeat_interleave(group, 1)))
    return torch.cat(out)


@pytest.fixture
def plain_flash(monkeypatch):
    monkeypatch.setattr(attention_gpu, "_kernel", plain_varlen)


@windows
@visibilities
@streams
def test_flash_calls_are_the_definition(plain_flash, rows, length, visibility, window):
    seq = stream(rows, length, visibility)
    qkv = heads(seq, seq)
    ours, theirs = (
        value_and_gradients(name, qkv, seq, seq, visibility, window) for name in ("flash", "reference")
    )
    assert_close(ours, theirs)


def test_where_documents_lie_is_found_once_for_the_layers_of_a_batch(plain_flash, monkeypatch):
    found: list[int] = []
    real = attention_gpu._runs
    monkeypatch.setattr(attention_gpu, "_runs", lambda names: found.append(len(names)) or real(names))
    for rows in ((4, 1, 2), (8,)):
        seq = stream((rows, (2, 3)), 8, Visibility.PREFIX)
        for _ in range(3):
            attend_by("flash", heads(seq, seq), seq, seq, Visibility.PREFIX)
    assert len(found) == 2 * 3  # for each batch, over everything, and the queries and keys of the prefix


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["masked", "by_document", "tiled", "flash", "flex"])
@pytest.mark.parametrize("visibility", [Visibility.CAUSAL, Visibility.PREFIX])
@pytest.mark.parametrize("n_new", [1, 3])
def test_the_next_tokens_attend_to_those_before_them(plain_flash, visibility, n_new, kernel):
    """As in generation: queries are the end of the stream, whose older documents have none."""
    seq = stream(((3, 5, 2), (4, 6), (10,)), 10, visibility)
    new = Seq(*(x[:, -n_new:] for x in seq))
    qkv = heads(new, seq)
    ours, theirs = (attend_by(name, qkv, new, seq, visibility) for name in (kernel, "reference"))
    assert_close([ours], [theirs])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["masked", "by_document", "tiled", "flash", "flex"])
def test_cross_attention_reaches_the_whole_source_of_a_document(plain_flash, kernel):
    """The two streams differ in length; a document may be missing from either."""
    target, source = stream(((4, 1, 3), (2, 5), ()), 8), stream(((2, 6), (3, 3, 4), (5,)), 10)
    source = source._replace(prefix=torch.ones_like(source.prefix))
    qkv = heads(target, source)
    ours, theirs = (
        attend_by(name, qkv, target, source, Visibility.BIDIRECTIONAL) for name in (kernel, "reference")
    )
    assert_close([ours], [theirs])


def attend_by(kernel: str, qkv: tuple[Tensor, ...], q: Seq, k: Seq, visibility: Visibility) -> Tensor:
    with backend.force(attention=kernel):
        return attend(*(x.detach() for x in qkv), q, k, visibility=visibility)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@windows
@visibilities
@pytest.mark.parametrize("name", ["mixed", "padding_alone", "many_short_documents"])
def test_flex_masks_are_the_definition(name, visibility, window):
    """Forward only: FlexAttention has no backward on the CPU."""
    rows, length = STREAMS[name]
    seq = stream(rows, length, visibility)
    qkv = [x.detach() for x in heads(seq, seq)]
    ours, theirs = (
        KERNELS[kernel](*qkv, seq, seq, visibility=visibility, window=window)
        for kernel in ("flex", "reference")
    )
    assert_close([ours], [theirs])
