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
from llmtrain.ops import attention, attention_gpu, backend
from llmtrain.ops.attention import KERNELS, attend
from llmtrain.ops.mask import mask
from llmtrain.types import NO_DOC, Seq, Visibility
from tests.tiny import MIXED, mixed, noise, stream

ROOT = Path(__file__).parents[1]
STREAMS = {
    "mixed": (MIXED, 8),
    "one_document_a_row": (((9,), (9,)), 9),
    "one_token": (((1,), (1,)), 1),
    "documents_of_one_token": (((1, 1, 1, 1), (1, 3)), 4),
    "many_short_documents": (((2, 3, 1, 2, 2, 3, 2, 4, 1), (3,) * 7), 21),
    "padding_alone": (((), ()), 5),
    "short_and_padded": (((3,), (7,), (2, 2)), 10),
}
streams = pytest.mark.parametrize(("rows", "length"), STREAMS.values(), ids=STREAMS.keys())
visibilities = pytest.mark.parametrize("visibility", Visibility)
windows = pytest.mark.parametrize("window", [None, 3])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def heads(
    q: Seq, k: Seq, *, n: int = 4, n_kv: int = 2, d: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    (b, t), s = q.doc.shape, k.doc.shape[1]
    shapes = ((b, n, t, d), (b, n_kv, s, d), (b, n_kv, s, d))
    a, b_, c = (noise(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes))
    return a, b_, c


def value_and_gradients(
    kernel: str,
    qkv: tuple[Tensor, ...],
    q_seq: Seq,
    k_seq: Seq,
    visibility: Visibility,
    window: int | None = None,
) -> list[Tensor]:
    with backend.force(attention=kernel):
        y = attend(*qkv, q_seq, k_seq, visibility=visibility, window=window)
    along = noise(*y.shape, seed=11, dtype=y.dtype)
    nothing = 0 * sum(x.sum() for x in qkv)  # padding alone depends on none of them
    return [y, *torch.autograd.grad((y * along).sum() + nothing, qkv)]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[a.dtype] * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kernel", ["masked", "by_document"])
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


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document"])
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


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document"])
@visibilities
@streams
def test_padding_yields_zeros_and_gets_no_gradient(rows, length, visibility, kernel):
    seq = stream(rows, length, visibility)
    for x in value_and_gradients(kernel, heads(seq, seq), seq, seq, visibility):
        assert torch.isfinite(x).all()
        assert not x.transpose(1, 2)[seq.doc == NO_DOC].any()


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document"])
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


# GPU kernels: their calls are checked here against a plain implementation of the kernel's contract


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
@pytest.mark.parametrize("kernel", ["masked", "by_document", "flash", "flex"])
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
@pytest.mark.parametrize("kernel", ["masked", "by_document", "flash", "flex"])
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


# as training runs it


def attention_and_input(visibility: Visibility = Visibility.CAUSAL) -> tuple[AttentionModule, Tensor]:
    module = Attention(head_dim=8, kv_group=2).build(32, visibility)
    initialise(module, n_layers=1, seed=0)
    return module, noise(*mixed(visibility).doc.shape, 32, dtype=torch.float32)


@pytest.mark.parametrize("kernel", ["reference", "masked", "by_document"])
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
