"""Every form of the scan and of the short convolution equals its definition, on every kind of stream."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.ops import backend, conv, scan_tiles
from llmtrain.ops.conv import short_conv, short_conv_reference
from llmtrain.ops.scan import KERNELS, recurrence, resume, scan
from llmtrain.ops.scan_chunks import State, chunks_of, running_sum, ssd
from llmtrain.ops.scan_tiles import ssd_tiled
from llmtrain.types import NO_DOC
from tests.tiny import MIXED, noise, stream

STREAMS = {
    "mixed": (MIXED, 8),
    "one_document_a_row": (((9,), (9,)), 9),
    "one_token": (((1,), (1,)), 1),
    "documents_of_one_token": (((1, 1, 1, 1), (1, 3)), 4),
    "many_short_documents": (((2, 3, 1, 2, 2, 3, 2, 4, 1), (3,) * 7), 21),
    "padding_alone": (((), ()), 5),
    "long": (((5, 17, 1, 9), (40,), (33, 3)), 40),
}
streams = pytest.mark.parametrize(("rows", "length"), STREAMS.values(), ids=STREAMS.keys())
directions = pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "reverse"])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
Inputs = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """So that there are several, and their edges are tried."""
    monkeypatch.setattr(scan_tiles, "_TILE", 300)
    monkeypatch.setattr(conv, "_TILE", 50)


def inputs(
    rows: int, tokens: int, *, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64
) -> Inputs:
    """x, dt, a, b, c as a mixer makes them: steps between 1e-3 and 1, rates up to 16."""
    made = (
        noise(rows, tokens, heads, 3, seed=1),
        F.softplus(noise(rows, tokens, heads, seed=2) - 3),
        -noise(heads, seed=3).exp().clamp(max=16),
        noise(rows, tokens, groups, 5, seed=4),
        noise(rows, tokens, groups, 5, seed=5),
    )
    return tuple(t.to(dtype).requires_grad_() for t in made)


def value_and_gradients(f: Callable[..., Tensor], given: Inputs) -> list[Tensor]:
    y = f(*given)
    return [y, *torch.autograd.grad((y * noise(*y.shape, seed=11).to(y)).sum(), given)]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[a.dtype] * max(1.0, b.abs().max().item()))


# the scan


@pytest.mark.parametrize("form", ["tiles", "products"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2])
@directions
@streams
def test_the_scan_in_chunks_equals_the_recurrence(rows, length, reverse, groups, dtype, form):
    doc = stream(rows, length).doc
    given = inputs(*doc.shape, groups=groups, dtype=dtype)
    expected = value_and_gradients(lambda *g: recurrence(*g, doc, reverse=reverse)[0], given)
    for chunk in (1, 3, 8, 64):
        if form == "tiles":
            found = value_and_gradients(lambda *g: ssd_tiled(*g, doc, chunk=chunk, reverse=reverse), given)  # noqa: B023
        else:
            found = value_and_gradients(lambda *g: ssd(*g, doc, chunk=chunk, reverse=reverse)[0], given)  # noqa: B023
        assert_close(found, expected)


def test_the_recurrence_is_the_sum_over_all_earlier_tokens():
    """y_i = sum_j c_i b_j dt_j exp(a (dt_j+1 + ... + dt_i)) x_j, written out."""
    x, dt, a, b, c = (t.detach() for t in inputs(1, 6, heads=2, groups=1))
    y = torch.zeros_like(x)
    for i in range(6):
        for j in range(i + 1):
            decay = (dt[0, j + 1 : i + 1].sum(0) * a).exp()
            y[0, i] += (decay * dt[0, j] * (c[0, i, 0] @ b[0, j, 0]))[:, None] * x[0, j]
    doc = torch.zeros(1, 6, dtype=torch.long)
    torch.testing.assert_close(recurrence(x, dt, a, b, c, doc)[0], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
@directions
@streams
def test_packed_documents_are_what_each_is_alone(rows, length, reverse, kernel):
    doc = stream(rows, length).doc
    given = inputs(*doc.shape)
    along = noise(*given[0].shape, seed=11)
    with backend.force(scan=kernel):
        y = scan(*given, doc, chunk=4, reverse=reverse)
        found = torch.autograd.grad((y * along).sum(), given, retain_graph=True)
        expected = [torch.zeros_like(g) for g in given]
        for r, lengths in enumerate(rows):
            start = 0
            for n in lengths:
                at = (slice(r, r + 1), slice(start, start + n))
                own = [t if t.ndim == 1 else t[at] for t in given]
                alone = scan(*own, doc[at], chunk=4, reverse=reverse)
                torch.testing.assert_close(alone, y[at], rtol=0, atol=1e-12)
                for total, g in zip(
                    expected, torch.autograd.grad((alone * along[at]).sum(), given), strict=True
                ):
                    total += g
                start += n
    assert not y[doc == NO_DOC].any()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["reference", "tiles", "products"])
@directions
def test_no_bit_of_a_document_depends_on_another(reverse, form):
    doc = stream(((5, 6, 4), (2, 9), (7,)), 16).doc
    given = [t.detach() for t in inputs(*doc.shape, dtype=torch.float32)]
    other = [t.detach() if t.ndim == 1 else t.where((doc == 1).view(*doc.shape, *[1] * (t.ndim - 2)), 1.7 * t)
             for t in given]  # fmt: skip

    def run(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        if form == "reference":
            return recurrence(x, dt, a, b, c, doc, reverse=reverse)[0]
        if form == "tiles":
            return ssd_tiled(x, dt, a, b, c, doc, chunk=8, reverse=reverse)
        return ssd(x, dt, a, b, c, doc, chunk=8, reverse=reverse)[0]

    same = (run(*given) == run(*other)).all(-1).all(-1)
    assert same[doc == 1].all()
    assert not same[doc == 0].any()


def test_time_reversed_is_the_scan_of_the_reversed_row():
    doc = stream(STREAMS["long"][0], 40).doc
    x, dt, a, b, c = inputs(*doc.shape)
    turned = scan(x.flip(1), dt.flip(1), a, b.flip(1), c.flip(1), doc.flip(1), chunk=8)
    torch.testing.assert_close(
        scan(x, dt, a, b, c, doc, chunk=8, reverse=True), turned.flip(1), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("form", ["tiles", "products"])
@directions
def test_decays_that_overflow_an_exponential_make_neither_infinities_nor_errors(reverse, form):
    """Steps of 0 (what softplus underflows to) and of 40 side by side, rates of 16, documents in between."""
    doc = stream(((20, 12, 30), (62,)), 64).doc
    x, dt, a, b, c = inputs(*doc.shape, dtype=torch.float32)
    dt = torch.where(noise(*dt.shape, seed=9) > 0, 40.0, torch.where(noise(*dt.shape, seed=8) > 0, dt, 0.0))
    given = (x, dt.detach().requires_grad_(), torch.full_like(a, -16.0).requires_grad_(), b, c)
    one = ssd_tiled if form == "tiles" else lambda *g, **k: ssd(*g, **k)[0]
    found = value_and_gradients(lambda *g: one(*g, doc, chunk=32, reverse=reverse), given)
    assert_close(found, value_and_gradients(lambda *g: recurrence(*g, doc, reverse=reverse)[0], given))


@pytest.mark.parametrize("cuts", [range(1, 40), [1, 8, 9, 30], [16], []], ids=str)
@torch.no_grad()
def test_piece_by_piece_is_the_scan_of_all(cuts):
    doc = stream(STREAMS["long"][0], 40).doc
    x, dt, a, b, c = inputs(*doc.shape)
    state = State(x.new_zeros(len(x), 4, 5, 3), torch.full((len(x),), NO_DOC))
    out = []
    for start, end in zip([0, *cuts], [*cuts, 40], strict=True):
        at = (slice(None), slice(start, end))
        y, state = resume(x[at], dt[at], a, b[at], c[at], doc[at], state, chunk=8)
        out.append(y)
    torch.testing.assert_close(torch.cat(out, 1), scan(x, dt, a, b, c, doc, chunk=8), rtol=0, atol=1e-12)
    assert torch.equal(state.doc, doc[:, -1])


@directions
def test_sums_by_doubling_are_cumulative_sums_of_each_document(reverse):
    doc = stream(((3, 9, 1), (13,), (6,)), 13).doc
    x = noise(3, 2, 13)
    expected = torch.zeros_like(x)
    for r in range(3):
        for i in range(13):
            past = torch.arange(13) >= i if reverse else torch.arange(13) <= i
            expected[r, :, i] = x[r][:, (doc[r] == doc[r, i]) & past].sum(-1)
    real = (doc != NO_DOC)[:, None]
    found = running_sum(x, chunks_of(doc, 13, reverse).seen, reverse)
    torch.testing.assert_close(found * real, expected * real, rtol=0, atol=1e-12)


def test_half_precision_is_widened_and_double_stays():
    doc = stream(((7, 5),), 12).doc
    given = inputs(1, 12)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        with torch.autocast("cpu", torch.bfloat16):
            y = scan(*(t.to(dtype) for t in given), doc, chunk=4)
        assert y.dtype == wide
        expected = recurrence(*(t.to(dtype).to(wide) for t in given), doc)[0]
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_a_cpu_takes_chunks_and_any_form_can_be_forced():
    x, doc = inputs(1, 6)[0], stream(((6,),), 6).doc
    assert backend.choose("scan", x) == "chunked"
    assert set(KERNELS) == {"reference", "chunked", "mamba"}
    with backend.force(scan="reference"):
        y = scan(*inputs(1, 6), doc, chunk=4)
    assert torch.equal(y, recurrence(*inputs(1, 6), doc)[0])


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and importlib.util.find_spec("mamba_ssm")),
    reason="needs a GPU and mamba_ssm",
)
@directions
def test_the_kernels_of_mamba_equal_the_recurrence(reverse):
    doc = stream(((50, 130, 76), (256,)), 256).doc.cuda()
    sizes = {"x": (2, 256, 4, 64), "dt": (2, 256, 4), "a": (4,), "b": (2, 256, 1, 64), "c": (2, 256, 1, 64)}
    x, dt, a, b, c = (noise(*s, seed=i, dtype=torch.float32).cuda() for i, s in enumerate(sizes.values()))
    given = tuple(t.requires_grad_() for t in (x, F.softplus(dt - 3), -a.exp().clamp(max=16), b, c))
    found, expected = (
        value_and_gradients(lambda *g: KERNELS[name](*g, doc, chunk=64, reverse=reverse), given)  # noqa: B023
        for name in ("mamba", "reference")
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-2 * theirs.abs().max().item()
        )  # tf32 products


# the short convolution


def taps(channels: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    made = noise(channels, width, seed=21), noise(channels, seed=22)
    weight, bias = (t.to(dtype).requires_grad_() for t in made)
    return weight, bias


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 2, 4, 12])
@directions
@streams
def test_the_convolution_in_few_passes_equals_its_definition(rows, length, reverse, width, dtype):
    doc = stream(rows, length).doc
    given = (noise(*doc.shape, 6, dtype=dtype).requires_grad_(), *taps(6, width, dtype))
    ours, theirs = (
        value_and_gradients(lambda *g: f(*g, doc, reverse=reverse), given)  # noqa: B023
        for f in (short_conv, short_conv_reference)
    )
    assert_close(ours, theirs)


@directions
def test_the_convolution_is_torchs_on_each_document(reverse):
    rows, length = STREAMS["long"]
    doc = stream(rows, length).doc
    x, (weight, bias) = noise(*doc.shape, 6), taps(6, 4, torch.float64)
    y = short_conv(x, weight, bias, doc, reverse=reverse)
    for r, lengths in enumerate(rows):
        start = 0
        for n in lengths:
            own = x[r, start : start + n].T
            own = F.pad(own.flip(-1) if reverse else own, (3, 0))
            z = F.silu(F.conv1d(own, weight[:, None], bias, groups=6)).T
            expected = z.flip(0) if reverse else z
            torch.testing.assert_close(y[r, start : start + n], expected, rtol=0, atol=1e-12)
            start += n
