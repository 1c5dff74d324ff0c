"""Every attention kernel equals the definition, in value and gradient, on every kind of stream."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention, AttentionModule
from llmtrain.ops import attention, backend
from llmtrain.ops.attention import attend
from llmtrain.ops.mask import mask
from llmtrain.types import NO_DOC, Seq, Visibility
from tests.streams import (
    STREAMS,
    TOLERANCE,
    assert_close,
    heads,
    streams,
    value_and_gradients,
    visibilities,
    windows,
)
from tests.tiny import mixed, noise, stream

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel", ["masked", "by_document", "tiled"])
@windows
@visibilities
def test_a_kernel_equals_the_reference(visibility, window, kernel, dtype):
    for rows, length in STREAMS.values():
        seq = stream(rows, length, visibility)
        qkv = heads(seq, seq, dtype=dtype)
        ours, theirs = (
            value_and_gradients(name, qkv, seq, seq, visibility, window) for name in (kernel, "reference")
        )
        assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document", "tiled"])
@visibilities
@streams
def test_packed_equals_each_document_alone(rows, length, visibility, kernel):
    seq = stream(rows, length, visibility)
    q, k, v = heads(seq, seq)
    packed = value_and_gradients(kernel, (q, k, v), seq, seq, visibility)
    along = noise(*q.shape, seed=11)
    for r, lengths in enumerate(rows):
        start = 0
        for n in lengths:
            at = (slice(r, r + 1), slice(None), slice(start, start + n))
            alone = Seq(*(x[r : r + 1, start : start + n] for x in seq))
            y = attend(q[at], k[at], v[at], alone, alone, visibility=visibility)
            gradients = torch.autograd.grad((y * along[at]).sum(), (q, k, v))
            assert_close([x[at] for x in packed], [y, *(g[at] for g in gradients)])
            start += n


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document", "tiled"])
@visibilities
@streams
def test_padding_yields_zeros_and_gets_no_gradient(rows, length, visibility, kernel):
    seq = stream(rows, length, visibility)
    for x in value_and_gradients(kernel, heads(seq, seq), seq, seq, visibility):
        assert torch.isfinite(x).all()
        assert not x.transpose(1, 2)[seq.doc == NO_DOC].any()


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document", "tiled"])
@pytest.mark.parametrize("n_kv", [1, 2, 4])
@visibilities
def test_grouped_keys_equal_repeated_keys(visibility, n_kv, kernel):
    seq = mixed(visibility)
    q, k, v = heads(seq, seq, n_kv=n_kv)
    repeated = [x.repeat_interleave(4 // n_kv, 1) for x in (k, v)]
    with backend.force(attention=kernel):
        ours, theirs = (attend(q, *kv, seq, seq, visibility=visibility) for kv in ((k, v), repeated))
    assert_close([ours], [theirs])


def test_the_reference_is_softmax_over_what_is_seen():
    """Against a loop in plain Python arithmetic, so that the definition itself is checked once."""
    seq = mixed(Visibility.PREFIX)
    q, k, v = (x.detach() for x in heads(seq, seq, n=2, n_kv=1))
    y = attention.reference(q, k, v, seq, seq, visibility=Visibility.PREFIX, window=3)
    seen = mask(seq, seq, 3)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in y.shape[:3])).tolist():
        js = seen[b, i].nonzero()[:, 0].tolist()
        scores = [math.exp(float(q[b, h, i] @ k[b, 0, j]) / math.sqrt(8)) for j in js]
        expected = sum(
            (s / sum(scores) * v[b, 0, j] for s, j in zip(scores, js, strict=True)), torch.zeros(8)
        )
        torch.testing.assert_close(y[b, h, i], expected, rtol=0, atol=1e-12, check_dtype=False)


def test_a_window_as_long_as_the_row_is_none():
    for visibility in Visibility:
        seq = mixed(visibility)
        qkv = heads(seq, seq)
        wide, none = (value_and_gradients("masked", qkv, seq, seq, visibility, w) for w in (8, None))
        assert_close(wide, none)


def test_a_choice_can_be_forced_and_is_forgotten_afterwards():
    x = noise(1)
    assert backend.choose("attention", x) == "by_document"
    with backend.force(attention="reference"):
        with backend.force(attention="masked"):
            assert backend.choose("attention", x) == "masked"
        with backend.force(attention="auto"):
            assert backend.choose("attention", x) == "reference"
    assert backend.choose("attention", x) == "by_document"


# as training runs it


def attention_and_input(visibility: Visibility = Visibility.CAUSAL) -> tuple[AttentionModule, Tensor]:
    module = Attention(head_dim=8, kv_group=2).build(32, visibility)
    initialise(module, n_layers=1, seed=0)
    return module, noise(*mixed(visibility).doc.shape, 32, dtype=torch.float32)


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document", "tiled"])
@pytest.mark.parametrize("visibility", Visibility)
def test_bfloat16_autocast_stays_near_float32_without_a_warning(visibility, kernel, recwarn):
    module, x = attention_and_input(visibility)
    seq = mixed(visibility)
    with backend.force(attention=kernel):
        exact = module(x, seq)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(x, seq)
        rounded.float().square().sum().backward()
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.slow
def test_compiled_without_a_graph_break_equals_eager():
    """In a process of its own: the type checker that tests run under is not to be compiled."""
    code = """
import torch
from llmtrain.types import Visibility
from tests.test_attention import attention_and_input, mixed
torch.set_num_threads(1)
for visibility in Visibility:
    (module, x), seq = attention_and_input(visibility), mixed(visibility)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for rows in ([0, 1, 2, 3], [3, 1, 0, 2]):  # the same graph, whatever the documents
        seq = type(seq)(*(part[rows] for part in seq))
        results = []
        for f in (module, compiled):
            y = f(x, seq)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
