"""What GPU kernels beside attention's are called with, that what they return is used right, and what is chosen where.

Each stand-in takes the arguments of the package's own function, checks what the kernel would refuse, and computes the
answer plainly.
"""

import sys
from types import ModuleType

import pytest
import torch

from llmtrain.ops import backend, moe
from llmtrain.ops.moe import Slots, experts
from llmtrain.ops.scan import recurrence, scan
from llmtrain.types import NO_DOC
from tests.recorder import ROWS, Recorder
from tests.tiny import noise, stream

# mamba_ssm


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
    dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False, return_varlen_states=False,
):  # fmt: skip
    """mamba_ssm 2.2's signature and meaning: the recurrence, restarted where ``seq_idx`` changes."""
    assert seq_idx.dtype == torch.int32 and seq_idx.is_contiguous()
    assert seq_idx.shape == x.shape[:2] and (seq_idx >= 0).all()
    assert chunk_size & (chunk_size - 1) == 0, "Triton takes powers of two"
    assert x.shape[2] % B.shape[2] == 0 and B.shape == C.shape
    return recurrence(x, dt, A, B, C, seq_idx.long())[0]


@pytest.fixture
def mamba(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(mamba_chunk_scan_combined)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.ssd_combined"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = sys.modules["mamba_ssm.ops.triton.ssd_combined"]
    monkeypatch.setattr(module, "mamba_chunk_scan_combined", recorder, raising=False)
    return recorder


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("chunk", "given"), [(3, 16), (16, 16), (24, 32), (256, 256)])
def test_mamba_gets_document_numbers_in_the_order_of_its_time(mamba, reverse, chunk, given):
    doc = stream(ROWS, 8).doc
    shapes = {"x": (4, 8, 4, 6), "dt": (4, 8, 4), "a": (4,), "b": (4, 8, 2, 5), "c": (4, 8, 2, 5)}
    x, dt, a, b, c = (noise(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes.values()))
    inputs = [t.requires_grad_() for t in (x, dt.abs(), -a.abs(), b, c)]
    found = []
    for kernel in ("mamba", "reference"):
        with backend.force(scan=kernel):
            y = scan(*inputs, doc, chunk=chunk, reverse=reverse)
        weights = noise(*y.shape, seed=9, dtype=torch.float32)
        found.append((y, *torch.autograd.grad((y * weights).sum(), inputs)))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    (call,) = mamba.calls
    assert call["chunk_size"] == given
    number = doc.flip(1) if reverse else doc
    assert torch.equal(call["seq_idx"].long(), number - NO_DOC)  # padding is document 0
    assert {call[name].dtype for name in ("x", "dt", "A", "B", "C")} == {torch.float32}


def test_mamba_gets_tokens_in_half_precision_and_rates_in_float32_under_autocast(mamba):
    doc = stream(ROWS, 8).doc
    x, b = noise(4, 8, 4, 6, dtype=torch.float32), noise(4, 8, 2, 5, dtype=torch.bfloat16)
    with backend.force(scan="mamba"), torch.autocast("cpu", torch.bfloat16):
        scan(x, noise(4, 8, 4, dtype=torch.float32).abs(), -torch.ones(4), b, b, doc, chunk=16)
    assert {mamba.calls[0][name].dtype for name in ("x", "B", "C")} == {torch.bfloat16}
    assert {mamba.calls[0][name].dtype for name in ("dt", "A")} == {torch.float32}


# grouped products


def test_grouped_products_get_half_precision_int32_bounds_and_weights_aligned_to_16_bytes(monkeypatch):
    def grouped_mm(mat_a, mat_b, *, offs=None, bias=None, out_dtype=None):
        """torch's signature, and what its CUDA kernel refuses: other types, strides not of whole 16 bytes."""
        assert mat_a.dtype == mat_b.dtype == torch.bfloat16
        assert offs.dtype == torch.int32 and offs.ndim == 1 and len(offs) == len(mat_b)
        assert (mat_a.ndim, mat_b.ndim) == (2, 3) and mat_a.shape[1] == mat_b.shape[1]
        for t in (mat_a, mat_b):
            assert 1 in t.stride()[-2:]  # one of the two axes lies close
            assert all(s * t.element_size() % 16 == 0 for s in t.stride() if s != 1)
        return real(mat_a, mat_b, offs=offs)

    real = torch.nn.functional.grouped_mm
    recorder = Recorder(grouped_mm)
    monkeypatch.setattr(moe.F, "grouped_mm", recorder)
    expert = torch.tensor([2, 0, 2, 3, 0, 2])  # expert 1 gets none
    slots = Slots(torch.arange(3).repeat_interleave(2), expert, noise(6, seed=5, dtype=torch.float32))
    x, gate_up, down = (
        noise(*s, seed=i, dtype=torch.float32).requires_grad_()
        for i, s in enumerate(((3, 16), (4, 48, 16), (4, 16, 24)))
    )
    found = []
    for kernel in ("grouped", "reference"):
        with backend.force(experts=kernel), torch.autocast("cpu", torch.bfloat16):
            y = experts(x, gate_up, down, slots)
        assert y.dtype == torch.bfloat16
        found.append(
            (y, *torch.autograd.grad((y * noise(3, 16, seed=7, dtype=y.dtype)).sum(), (x, gate_up, down)))
        )
    for ours, reference in zip(*found, strict=True):
        assert (
            ours - reference
        ).float().norm() < 0.02 * reference.float().norm()  # roundings at other places
    assert [call["offs"].tolist() for call in recorder.calls] == [[2, 2, 5, 6]] * 2


# what is chosen where


@pytest.mark.parametrize(
    ("dtype", "installed", "attention", "scan_by", "experts_by"),
    [
        (torch.bfloat16, True, "flash", "mamba", "grouped"),
        (torch.bfloat16, False, "flash", "chunked", "grouped"),
        (torch.float32, True, "flex", "chunked", "grouped"),
        (torch.float64, True, "masked", "chunked", "sliced"),
    ],
)
def test_a_gpu_runs_what_is_installed_and_takes_the_type(
    monkeypatch, dtype, installed, attention, scan_by, experts_by
):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object() if installed else None)
    backend._probe.cache_clear()
    try:
        with backend.standing_for("cuda"):
            x = torch.zeros(1, dtype=dtype)
            chosen = [backend.choose(op, x) for op in ("attention", "scan", "experts")]
    finally:
        backend._probe.cache_clear()
    assert chosen == [attention, scan_by, experts_by]
