"""Every path of a mixture of experts is the reference, in value and gradient, and keeps no more than it needs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmtrain.nn.mlps.moe import MoE
from llmtrain.ops import backend, moe_sliced
from llmtrain.ops.moe import KERNELS, experts
from llmtrain.ops.moe_sliced import sliced_experts
from tests.mixtures import D, choices, moe, one_a_row, slots_of
from tests.tiny import noise, stream

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("kernel", "dtype", "tolerance"),
    [("sliced", torch.float64, 1e-10), ("sliced", torch.float32, 1e-5), ("grouped", torch.float32, 1e-5)],
)
@pytest.mark.parametrize(("n", "e", "k", "d", "f"), [(40, 5, 2, 16, 24), (3, 8, 1, 8, 8), (64, 4, 4, 8, 16)])
def test_a_fast_path_is_the_reference_in_value_and_gradient(kernel, dtype, tolerance, n, e, k, d, f):
    slots = slots_of(n, e, k, dtype=dtype)
    shapes = ((n, d), (e, 2 * f, d), (e, d, f))
    inputs = [noise(*s, seed=i, dtype=dtype).mul(0.3).requires_grad_() for i, s in enumerate(shapes)]
    gate = slots.gate.requires_grad_()
    found = []
    for name in ("reference", kernel):
        with backend.force(experts=name):
            y = experts(*inputs, slots)
        found.append((y, *torch.autograd.grad((y * noise(n, d, seed=9, dtype=dtype)).sum(), (*inputs, gate))))
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n", "e", "k"), [(40, 5, 2), (3, 8, 1), (64, 4, 4)])
def test_slots_that_are_there_for_a_round_number_leave_no_trace(monkeypatch, n, e, k):
    """In value and gradient, where some experts have no token too."""
    monkeypatch.setattr(moe_sliced, "_unit", lambda dtype: 16)
    slots = slots_of(n, e, k)
    shapes = ((n, 8), (e, 2 * 6, 8), (e, 8, 6))
    inputs = [noise(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    gate = slots.gate.requires_grad_()
    found = []
    for name in ("reference", "sliced"):
        with backend.force(experts=name):
            y = experts(*inputs, slots)
        found.append((y, *torch.autograd.grad((y * noise(n, 8, seed=9)).sum(), (*inputs, gate))))
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    y, h = sliced_experts(*inputs, *slots)
    assert h.shape == torch.ops.llmtrain.sliced_experts(*(x.to("meta") for x in (*inputs, *slots)))[1].shape


def test_shapes_of_products_in_bfloat16_come_back(monkeypatch):
    """Each new one is compiled, which takes as long as the product."""
    seen = set()
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **kw: seen.add((a.shape, b.shape)) or mm(a, b, **kw))
    for seed in range(20):
        slots = slots_of(100, 4, 2, dtype=torch.float32, seed=seed)
        inputs = (noise(*s, dtype=torch.float32).bfloat16() for s in ((100, 8), (4, 12, 8), (4, 8, 6)))
        sliced_experts(*inputs, *slots)
    assert len(seen) <= 2 * 4  # of two products, loads of 32, 64, 96 and 128


@choices
def test_a_layer_is_the_same_on_every_path(cfg):
    seq, module = one_a_row(), moe(cfg)
    found = []
    for name in ("reference", "sliced"):
        x = noise(*seq.doc.shape, D).requires_grad_()
        with backend.force(experts=name):
            h, (routing,) = module(x, seq)
        loss = (h * noise(*h.shape, seed=3)).sum() + routing.prob.square().sum() + routing.z
        found.append((h, *routing, *torch.autograd.grad(loss, [x, *module.parameters()])))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_the_opaque_operation_keeps_its_promises_to_torch():
    slots = slots_of(4, 3, 2)
    x, gate_up, down = (
        noise(*s, seed=i).requires_grad_() for i, s in enumerate(((4, 3), (3, 4, 3), (3, 3, 2)))
    )
    args = (x, gate_up, down, slots.token, slots.expert, slots.gate.requires_grad_())
    torch.library.opcheck(
        sliced_experts, args, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )
    assert torch.autograd.gradcheck(lambda *a: sliced_experts(*a)[0], args)


@pytest.mark.slow
def test_a_compiled_layer_is_one_graph_of_the_same_values():
    """In a process of its own: the type checker that tests run under is not to be compiled."""
    code = """
import torch
from llmtrain.nn.mlps.moe import MoE
from llmtrain.types import Visibility
from tests.tiny import noise, stream

torch.set_num_threads(1)
seq = stream(((7,), (12,), ()), 12, Visibility.BIDIRECTIONAL)
for cfg in (MoE(bias_rate=0.1), MoE(choice="expert", renormalise=False, balance=0.0)):
    module = cfg.build(16, Visibility.BIDIRECTIONAL).double()
    for i, p in enumerate(module.parameters()):
        p.data = noise(*p.shape, seed=i)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for f in (module, compiled):
        x = noise(3, 12, 16).requires_grad_()
        h, (routing,) = f(x, seq)
        loss = h.square().sum() + routing.z
        found.append((h, *routing, *torch.autograd.grad(loss, [x, *module.parameters()])))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@choices
def test_the_same_bits_come_out_twice_with_deterministic_operations_only(cfg):
    seq, module = one_a_row(), moe(cfg).float()
    x = noise(*seq.doc.shape, D, dtype=torch.float32).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for name in (*KERNELS, *KERNELS):
            with backend.force(experts=name):
                h, (routing,) = module(x, seq)
            found.append(torch.autograd.grad(h.square().sum() + routing.z, [x, *module.parameters()]))
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second in zip(found[: len(KERNELS)], found[len(KERNELS) :], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_kept_for_the_backward_pass_grows_with_parameters_only():
    def kept(n_experts: int) -> int:
        module, seq = moe(MoE(n_experts=n_experts)), stream(((64,),) * 2, 64)
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        found: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            if t.untyped_storage().data_ptr() not in own:
                found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            h, _ = module(noise(2, 64, D).requires_grad_(), seq)
        assert h.requires_grad
        return sum(found.values())

    scores = 2 * 64 * 8 * (64 - 4)  # one number for each token and expert more, of float64
    assert kept(64) - kept(4) < 4 * scores
    inner = 2 * 64 * 2 * 2 * moe(MoE()).d_ff * 8  # top_k experts' gate and up
    assert kept(4) > inner
