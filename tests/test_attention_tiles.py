"""Attention by tiles equals the reference whatever their size, looks at no more than it must, and keeps nothing."""

import pytest
import torch

from llmtrain.ops import attention_tiles, backend
from llmtrain.ops.attention import attend, reference
from llmtrain.ops.attention_tiles import plan, tiled
from llmtrain.types import NO_DOC, Visibility
from tests.streams import STREAMS, assert_close, heads, streams, visibilities, windows
from tests.tiny import noise, stream

sizes = pytest.mark.parametrize(
    ("scores", "queries"),
    [(1 << 22, 256), (1, 1), (1, 3), (4 * 3 * 10, 3)],
    ids=["all", "one by one", "three of a head", "three of some rows"],
)


def both(qkv, q_seq, k_seq, visibility, window=None):
    found = []
    for kernel in (tiled, reference):
        y = kernel(*qkv, q_seq, k_seq, visibility=visibility, window=window)
        nothing = 0 * sum(x.sum() for x in qkv)  # padding alone depends on none of them
        along = noise(*y.shape, seed=11).to(y.dtype)
        found.append([y, *torch.autograd.grad((y * along).sum() + nothing, qkv)])
    return found


@sizes
@windows
@visibilities
@streams
def test_tiles_of_any_size_equal_the_reference(
    monkeypatch, rows, length, visibility, window, scores, queries
):
    monkeypatch.setattr(attention_tiles, "_TILE", scores)
    monkeypatch.setattr(attention_tiles, "_QUERIES", queries)
    seq = stream(rows, length, visibility)
    assert_close(*both(heads(seq, seq), seq, seq, visibility, window))


@sizes
def test_two_streams(monkeypatch, scores, queries):
    monkeypatch.setattr(attention_tiles, "_TILE", scores)
    monkeypatch.setattr(attention_tiles, "_QUERIES", queries)
    target, source = stream(((4, 1, 3), (2, 5), ()), 8), stream(((2, 6), (3, 3, 4), (5,)), 10)
    source = source._replace(prefix=torch.ones_like(source.prefix))
    assert_close(*both(heads(target, source), target, source, Visibility.BIDIRECTIONAL))


def of(seq, visibility, window=None, queries=4):
    past = visibility is Visibility.CAUSAL
    bands = plan(seq, seq, past=past, window=window, n_rows=8, n_queries=queries, dtype=torch.float32)
    assert len(bands) == 1
    return bands[0].tiles


def test_only_what_some_query_sees_is_looked_at_and_masked_only_where_some_does_not():
    one = stream(((12,),) * 3, 12, Visibility.CAUSAL)
    for i, tile in enumerate(of(one, Visibility.CAUSAL)):
        assert tile.keys == slice(0, 4 * i + 4)
        assert tile.edge == slice(4 * i + 1, 4 * i + 4)  # the first of its own is seen by all
        assert tile.blind is None
    whole = stream(((12,),) * 3, 12, Visibility.BIDIRECTIONAL)
    assert all(
        tile.bias is None and tile.keys == slice(0, 12) for tile in of(whole, Visibility.BIDIRECTIONAL)
    )
    two = stream(((4, 8),) * 3, 12, Visibility.BIDIRECTIONAL)
    ends = [(tile.keys.start, tile.keys.stop) for tile in of(two, Visibility.BIDIRECTIONAL)]
    assert ends == [(0, 4), (4, 12), (4, 12)]
    assert all(tile.bias is None for tile in of(two, Visibility.BIDIRECTIONAL))
    near = of(one, Visibility.CAUSAL, window=3)
    assert [tile.keys.start for tile in near] == [0, 2, 6]
    padded = stream(((5,), (6,)), 12, Visibility.BIDIRECTIONAL)
    *_, last = of(padded, Visibility.BIDIRECTIONAL)
    assert last.keys == slice(0, 0)
    assert (padded.doc[:, 8:] == NO_DOC).all()


def test_bfloat16_is_about_as_near_to_the_truth_as_the_reference_in_bfloat16(monkeypatch):
    """Weights are rounded once more than the reference's on their way back; sums over tiles are not, between them."""
    monkeypatch.setattr(attention_tiles, "_QUERIES", 32)
    seq = stream(((300, 340), (640,)), 640, Visibility.CAUSAL)
    exact = heads(seq, seq, d=16, dtype=torch.float64)
    narrow = [x.detach().bfloat16().requires_grad_() for x in exact]
    truth = both(
        [x.detach().bfloat16().double().requires_grad_() for x in exact], seq, seq, Visibility.CAUSAL
    )
    ours, theirs = both(narrow, seq, seq, Visibility.CAUSAL)
    for a, b, t in zip(ours, theirs, truth[1], strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - t).norm() <= 1.2 * (b - t).norm() < 0.01 * t.norm()


def test_only_queries_keys_and_values_are_kept():
    seq = stream(STREAMS["mixed"][0], 8, Visibility.CAUSAL)
    qkv = heads(seq, seq)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tiled(*qkv, seq, seq, visibility=Visibility.CAUSAL)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in qkv}


def test_a_cpu_takes_them_in_bfloat16_and_a_few_queries_go_to_the_mask(monkeypatch):
    assert backend.choose("attention", noise(1).bfloat16()) == "tiled"
    assert backend.choose("attention", noise(1).float()) == "by_document"
    monkeypatch.setattr(attention_tiles, "tiled", None)
    seq = stream(((5,), (3, 2)), 5, Visibility.CAUSAL)
    qkv = heads(seq, seq)
    with backend.force(attention="tiled"):
        y = attend(*qkv, seq, seq, visibility=Visibility.CAUSAL)
    assert_close([y], [reference(*qkv, seq, seq, visibility=Visibility.CAUSAL)])
