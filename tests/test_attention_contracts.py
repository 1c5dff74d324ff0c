"""What attention's GPU kernels are called with, and that what they return is used right.

Each stand-in takes the arguments of the package's own function and checks what the kernel would refuse. flash-attn's
plain answer and FlexAttention's masks are held against the reference in test_attention_gpu.py.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.ops import attention_gpu, backend
from llmtrain.ops.attention import attend
from llmtrain.types import NO_DOC, Seq, Visibility
from tests.recorder import BOUNDS, ROWS, Recorder
from tests.tiny import noise, stream

visibilities = pytest.mark.parametrize("visibility", Visibility)
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


# flash-attn


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """flash-attn 2.8's signature; its answer is of no matter here."""
    return torch.full_like(q, 2.0 if causal else 3.0)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """As if flash-attn were installed."""
    recorder = Recorder(flash_attn_varlen_func)
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(attention_gpu, "_kernel", attention_gpu._by_flash_attn)
    return recorder


@pytest.fixture
def torchs_flash(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """As on a GPU without flash-attn."""
    from torch.nn.attention import varlen

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
        window_size=(-1, -1), enable_gqa=False,
    ):  # fmt: skip
        assert enable_gqa or query.shape[1] == key.shape[1]
        return torch.full_like(query, 2.0 if window_size == (-1, 0) else 3.0)

    assert set(inspect.signature(varlen_attn).parameters) <= set(
        inspect.signature(varlen.varlen_attn).parameters
    )
    recorder = Recorder(varlen_attn)
    monkeypatch.setattr(varlen, "varlen_attn", recorder)
    monkeypatch.setattr(attention_gpu, "_kernel", attention_gpu._by_torch)
    return recorder


def heads(seq: Seq, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Four query heads of 16 on two key heads."""
    rows, tokens = seq.doc.shape
    shapes = (rows, 4, tokens, 16), (rows, 2, tokens, 16), (rows, 2, tokens, 16)
    q, k, v = (noise(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    return q, k, v


def by(kernel: str, seq: Seq, dtype: torch.dtype, visibility: Visibility, **options: Any) -> Tensor:
    with backend.force(attention=kernel):
        return attend(*heads(seq, dtype), seq, seq, visibility=visibility, **options)


@halves
@visibilities
def test_flash_gets_tokens_of_documents_end_to_end_in_half_precision(flash, visibility, dtype):
    seq = stream(ROWS, 8, visibility)
    y = by("flash", seq, dtype, visibility)
    assert y.shape == (4, 4, 8, 16) and y.dtype == dtype
    assert not y.transpose(1, 2)[seq.doc == NO_DOC].any()
    call = flash.calls[0]
    for name, given in zip("qkv", heads(seq, dtype), strict=True):
        assert torch.equal(call[name], given.transpose(1, 2).flatten(0, 1))  # N H K
        assert call[name].dtype == dtype and call[name].stride(-1) == 1
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        assert call[name].dtype == torch.int32 and call[name].tolist() == BOUNDS
    assert call["max_seqlen_q"] == call["max_seqlen_k"] == 8
    assert type(call["max_seqlen_q"]) is int  # the kernel takes no tensor


def test_a_wide_query_is_cast_to_what_the_values_are(flash):
    """Norms of queries and keys leave float32 under autocast."""
    seq = stream(ROWS, 8)
    q, k, v = heads(seq, torch.float32)
    with backend.force(attention="flash"):
        attend(q, k, v.bfloat16(), seq, seq, visibility=Visibility.CAUSAL)
    assert {flash.calls[0][name].dtype for name in "qkv"} == {torch.bfloat16}


def test_a_prefix_is_a_causal_call_and_one_among_the_prefix(flash):
    seq = stream(ROWS, 8, Visibility.PREFIX)  # prefixes of 0, 1, 2, 3, 2 and 3 tokens, by their documents
    y = by("flash", seq, torch.bfloat16, Visibility.PREFIX)
    everything, among = flash.calls
    assert (everything["causal"], among["causal"]) == (True, False)
    documents = [(r, d) for r, lengths in enumerate(ROWS) for d in range(len(lengths))]
    sizes = [int((seq.prefix[r] & (seq.doc[r] == d)).sum()) for r, d in documents]
    sizes = [n for n in sizes if n]
    assert among["cu_seqlens_q"].diff().tolist() == among["cu_seqlens_k"].diff().tolist() == sizes
    assert among["max_seqlen_q"] == max(sizes) and len(among["q"]) == sum(sizes)
    answer = y.transpose(1, 2)
    real = seq.doc != NO_DOC
    assert (answer[seq.prefix & real] == 3).all() and (answer[~seq.prefix & real] == 2).all()
    assert (answer[~real] == 0).all()


@pytest.mark.parametrize(
    ("visibility", "expected"), [(Visibility.CAUSAL, (2, 0)), (Visibility.BIDIRECTIONAL, (2, 2))]
)
def test_a_window_counts_the_neighbours_on_either_side(flash, visibility, expected):
    """Ours is of positions less than 3 away; flash-attn counts those beside the token itself."""
    by("flash", stream(ROWS, 8, visibility), torch.bfloat16, visibility, window=3)
    assert flash.calls[0]["window_size"] == expected


@visibilities
def test_a_stream_of_padding_alone_hears_nothing(flash, visibility):
    assert not by("flash", stream(((), ()), 8), torch.bfloat16, visibility).any()


@pytest.mark.parametrize("asked", [True, False])
def test_flash_is_deterministic_where_the_run_is(flash, asked):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(asked)
    try:
        by("flash", stream(ROWS, 8, Visibility.PREFIX), torch.bfloat16, Visibility.PREFIX)
    finally:
        torch.use_deterministic_algorithms(before)
    assert [call["deterministic"] for call in flash.calls] == [asked, asked]


@visibilities
def test_torchs_own_kernel_stands_where_flash_attn_is_missing(torchs_flash, visibility):
    by("flash", stream(ROWS, 8, visibility), torch.bfloat16, visibility)
    windows = {
        Visibility.CAUSAL: [(-1, 0)],
        Visibility.BIDIRECTIONAL: [(-1, -1)],
        Visibility.PREFIX: [(-1, 0), (-1, -1)],
    }
    assert [call["window_size"] for call in torchs_flash.calls] == windows[visibility]
    assert torchs_flash.calls[0]["cu_seq_q"].tolist() == BOUNDS


# FlexAttention


@visibilities
def test_flex_gets_a_block_mask_of_each_row_and_grouped_heads(monkeypatch, visibility):
    import torch.nn.attention.flex_attention as torchs

    def flex_attention(query, key, value, score_mod=None, block_mask=None, scale=None, enable_gqa=False):
        return torch.zeros_like(query)

    ours = set(inspect.signature(flex_attention).parameters)
    assert ours <= set(inspect.signature(torchs.flex_attention).parameters)
    recorder = Recorder(flex_attention)
    monkeypatch.setattr(attention_gpu, "_flex", recorder)
    seq = stream(((100, 28), (128,), (60,)), 130, visibility)
    by("flex", seq, torch.bfloat16, visibility)
    (call,) = recorder.calls
    assert call["enable_gqa"] and {call[x].dtype for x in ("query", "key", "value")} == {torch.bfloat16}
    assert (call["query"].shape, call["key"].shape) == ((3, 4, 130, 16), (3, 2, 130, 16))
    assert call["scale"] == 16**-0.5
    mask = call["block_mask"]
    assert mask.seq_lengths == (130, 130) and mask.kv_num_blocks.shape == (3, 1, 2)  # one mask for all heads
