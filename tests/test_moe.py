"""A mixture of experts is what its definition says, on every path, and hears no more than it may."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops, size
from llmtrain.nn.base import Extent
from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.moe import MoE, MoEModule
from llmtrain.nn.model import Block, Layer, ModelConfig
from llmtrain.nn.roles import roles
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops import backend
from llmtrain.ops.moe import KERNELS, Slots, experts
from llmtrain.ops.moe_sliced import sliced_experts, sliced_experts_backward
from llmtrain.types import NO_DOC, Seq, Visibility
from tests.tiny import VOCAB, batch_of, mixed, model_of, noise, stream

ROOT = Path(__file__).parents[1]
D = 32
TOKEN = {
    "plain": MoE(),
    "scores": MoE(renormalise=False, top_k=3),
    "switch": MoE(n_experts=4, top_k=1, renormalise=False),
    "deepseek": MoE(scores="sigmoid", n_shared=1, scale=2.5, bias_rate=0.01, ratio=0.25),
}
EXPERT = {
    "experts_choose": MoE(choice="expert", renormalise=False, balance=0.0, n_shared=1),
    "experts_choose_by_sigmoid": MoE(
        choice="expert", scores="sigmoid", renormalise=False, balance=0.0, n_experts=3
    ),
}
token_choices = pytest.mark.parametrize("cfg", TOKEN.values(), ids=TOKEN.keys())
choices = pytest.mark.parametrize("cfg", [*TOKEN.values(), *EXPERT.values()], ids=[*TOKEN, *EXPERT])
visibilities = pytest.mark.parametrize("visibility", Visibility)


def moe(cfg: MoE, *, bias: bool = True) -> MoEModule:
    """In float64, with biases that matter."""
    module = cfg.build(D, Visibility.BIDIRECTIONAL)
    initialise(module, n_layers=1, seed=0)
    module.double()
    if cfg.bias_rate and bias:
        module.bias.copy_(0.3 * noise(cfg.n_experts, seed=5))
    return module


def one_a_row() -> Seq:
    """Documents of different lengths, the last row padding alone."""
    return stream(((7,), (12,), (1,), ()), 12, Visibility.BIDIRECTIONAL)


def slots_of(n: int, e: int, k: int, *, dtype: torch.dtype = torch.float64) -> Slots:
    """The same experts again and again, so that some get many tokens and others none."""
    expert = (noise(n, e, seed=1) + torch.arange(e).ge(e - 1) * -9.0).topk(k, -1).indices
    token = torch.arange(n).repeat_interleave(k)
    return Slots(token, expert.flatten(), noise(n * k, seed=2).to(dtype))


# fast is the reference


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


# the definition


def test_gates_are_the_scores_of_the_chosen_and_the_bias_only_chooses():
    seq, x = stream(((9,),), 9), noise(1, 9, D)
    for cfg in TOKEN.values():
        module = moe(cfg)
        logits = x[0] @ module.router.weight.T
        scores = logits.softmax(-1) if cfg.scores == "softmax" else logits.sigmoid()
        wish = scores + module.bias if cfg.bias_rate else scores
        y = torch.zeros(9, D, dtype=x.dtype)
        counts = torch.zeros(cfg.n_experts, dtype=x.dtype)
        for t in range(9):
            chosen = sorted(range(cfg.n_experts), key=lambda e: -wish[t, e].item())[: cfg.top_k]
            total = sum(scores[t, e] for e in chosen) if cfg.renormalise else 1.0
            for e in chosen:
                gate, up = (module.gate_up[e] @ x[0, t]).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                y[t] += cfg.scale * scores[t, e] / total * (module.down[e] @ inner)
                counts[e] += 1
        if module.shared is not None:
            y = y + module.shared(x, seq).h[0]
        h, (routing,) = module(x, seq)
        torch.testing.assert_close(h[0], y, rtol=0, atol=1e-12)
        assert torch.equal(routing.counts, counts)
        shares = scores / scores.sum(-1, keepdim=True)
        torch.testing.assert_close(routing.prob, shares.sum(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(routing.z, logits.logsumexp(-1).square().sum(), rtol=0, atol=1e-12)


def test_the_bias_moves_the_choice_and_no_gate():
    seq, x, cfg = stream(((9,),), 9), noise(1, 9, D), MoE(bias_rate=0.1, top_k=8)
    with_bias, without = moe(cfg), moe(cfg, bias=False)
    torch.testing.assert_close(with_bias(x, seq).h, without(x, seq).h, rtol=0, atol=1e-12)  # all are chosen
    few = moe(dataclasses.replace(cfg, top_k=2))
    few.bias.copy_(torch.tensor([9.0] + [0.0] * 7))
    assert few(x, seq).routing[0].counts[0] == 9


def test_experts_take_the_tokens_that_score_highest_for_them_as_many_as_the_row_has_to_give():
    seq, cfg = one_a_row(), EXPERT["experts_choose_by_sigmoid"]
    module, x = moe(cfg), noise(4, 12, D)
    y, counts = torch.zeros(4, 12, D, dtype=x.dtype), 0
    for row, n in enumerate((7, 12, 1, 0)):
        scores = (x[row] @ module.router.weight.T).sigmoid()
        capacity = math.ceil(n * cfg.top_k / cfg.n_experts)
        counts += capacity
        for e in range(cfg.n_experts):
            for t in sorted(range(n), key=lambda t: -scores[t, e].item())[:capacity]:
                gate, up = (module.gate_up[e] @ x[row, t]).chunk(2)
                y[row, t] += scores[t, e] * (module.down[e] @ (torch.nn.functional.silu(gate) * up))
    h, (routing,) = module(x, seq)
    torch.testing.assert_close(h, y, rtol=0, atol=1e-12)
    assert routing.counts.tolist() == [counts] * cfg.n_experts


@choices
def test_padding_is_not_routed_and_counts_nothing(cfg):
    seq, module = one_a_row(), moe(cfg)
    pad = seq.doc == NO_DOC
    x = noise(*seq.doc.shape, D).requires_grad_()
    h, (routing,) = module(x, seq)
    assert not h[pad].any()
    assert routing.prob.sum().item() == pytest.approx((~pad).sum().item())
    if cfg.choice == "token":
        assert routing.counts.sum() == cfg.top_k * (~pad).sum()
    loss = h.square().sum() + routing.prob.square().sum() + routing.z
    gradient = torch.autograd.grad(loss, x)[0]
    assert not gradient[pad].any()
    assert gradient[~pad].any(-1).all() or cfg.choice == "expert"
    other = torch.where(pad[..., None], 100 * noise(*x.shape, seed=4), x.detach())
    with torch.no_grad(), backend.force(experts="reference"):
        first, second = module(x.detach(), seq), module(other, seq)
    assert torch.equal(first.h, second.h)
    assert all(torch.equal(a, b) for a, b in zip(first.routing[0], second.routing[0], strict=True))


@choices
def test_the_router_is_at_least_float32_under_autocast(cfg):
    seq, module = one_a_row(), moe(cfg).float()
    x = noise(*seq.doc.shape, D, dtype=torch.float32)
    plain, (counted,) = module(x, seq)
    with torch.autocast("cpu", torch.bfloat16):
        narrow, (routing,) = module(x, seq)
    assert narrow.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(routing, counted, strict=True))
    assert (narrow - plain).norm() < 0.02 * plain.norm()


# what is heard


def block_of(cfg: MoE, visibility: Visibility) -> Block:
    model = ModelConfig(n_layers=1, d_model=D, layers=(Layer(mixer=Attention(head_dim=8), mlp=cfg),))
    block = Block(model, 0, visibility, cross=False).double()
    for i, p in enumerate(block.parameters()):
        p.data = noise(*p.shape, seed=i) * (0.3 if p.ndim > 1 else 1.0)
    return block


@visibilities
@token_choices
def test_tokens_that_choose_hear_themselves_alone(cfg, visibility):
    """By gradient, and by perturbation: every other output keeps its bits."""
    seq, module = mixed(visibility), block_of(cfg, visibility).mlp
    real = (seq.doc != NO_DOC).flatten()
    x = noise(*seq.doc.shape, D).requires_grad_()
    with backend.force(experts="reference"):
        h = module(x, seq).h
        along = h.flatten(0, 1) @ noise(D, seed=8)
        reach = torch.stack([torch.autograd.grad(y, x, retain_graph=True)[0].norm(dim=-1) for y in along])
        reach = reach.flatten(1)
        assert torch.equal(reach > 1e-9 * reach.max(), torch.diag(real))
    with torch.no_grad(), backend.force(experts="reference"):
        x = x.detach()  # torch multiplies otherwise where a gradient is wanted, in other bits
        h = module(x, seq).h
        for j in range(seq.doc.shape[1]):
            other = x.clone()
            other[:, j] = noise(len(x), D, seed=9)
            changed = (module(other, seq).h != h).any(-1)
            assert torch.equal(changed.nonzero()[:, 1].unique(), torch.tensor([j]))
            assert torch.equal(changed[:, j], seq.doc[:, j] != NO_DOC)


@pytest.mark.parametrize("cfg", EXPERT.values(), ids=EXPERT.keys())
def test_experts_that_choose_hear_the_whole_row_and_no_other(cfg):
    """A choice is discrete: no gradient sees it, but another token may take one's place."""
    seq, module = one_a_row(), block_of(cfg, Visibility.BIDIRECTIONAL).mlp
    x = noise(*seq.doc.shape, D)
    heard = False
    with torch.no_grad(), backend.force(experts="reference"):
        h = module(x, seq).h
        for row in range(len(x)):
            for j in range(x.shape[1]):
                other = x.clone()
                other[row, j] = noise(D, seed=100 + j)
                changed = (module(other, seq).h != h).any(-1)
                changed[row] &= seq.doc[row] == NO_DOC  # in its own row any real token may change
                assert not changed.any()
                heard |= bool(
                    (module(other, seq).h != h).any(-1)[row, [t for t in range(12) if t != j]].any()
                )
    assert heard


def test_experts_that_choose_are_refused_where_the_choice_would_leak():
    cfg = EXPERT["experts_choose"]
    model = ModelConfig(n_layers=1, d_model=D, layers=(Layer(mixer=Attention(head_dim=8), mlp=cfg),))
    with pytest.raises(ValueError, match=r"layers\.0 has MoE, which can only be bidirectional"):
        CausalLM().check(model, seq_len=8, one_document=True)
    assert cfg.one_document and not TOKEN["plain"].one_document
    assert TOKEN["plain"].supports == frozenset(Visibility)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n_experts": 1}, "n_experts must be at least 2, got 1"),
        ({"top_k": 9}, "top_k=9 is more than n_experts=8"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 1}, "set renormalise=false, or a higher top_k"),
        ({"n_shared": -1}, "n_shared must be at least 0"),
        ({"ratio": 0.0}, "ratio must be positive, got 0"),
        ({"scale": float("nan")}, "finite number"),
        ({"balance": -0.1}, "balance must not be negative"),
        ({"bias_rate": float("nan")}, "finite number"),
        ({"choice": "expert"}, "set renormalise=false, balance=0 and bias_rate=0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(fields, says):
    with pytest.raises(ValueError, match=says):
        MoE(**fields)


# counts


def clm_of(cfg: MoE) -> ModelConfig:
    layer = Layer(mixer=Attention(head_dim=8), mlp=cfg)
    return ModelConfig(n_layers=2, d_model=D, layers=(layer,))


@pytest.mark.parametrize("kernel", ["sliced", "grouped"])
@token_choices
def test_flops_counter_is_what_torch_counts_of_a_row(cfg, kernel):
    objective, model = CausalLM(), model_of(CausalLM(), clm_of(cfg))
    expected = flops(clm_of(cfg), objective, 12, vocab_size=VOCAB.size).counter
    with (
        backend.force(attention="reference", experts=kernel),
        FlopCounterMode(display=False, custom_mapping=GROUPED) as counter,
    ):
        objective.loss(model, batch_of(objective, seq_len=12, rows=3)).loss.backward()
    assert counter.get_total_flops() == 3 * expected


def _grouped(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """Rows by groups of weights, or, in the gradient of weights, groups of rows: each row meets one matrix."""
    return 2 * a[0] * a[1] * b[-1]


GROUPED = {torch.ops.aten._grouped_mm: _grouped}


@pytest.mark.parametrize("cfg", EXPERT.values(), ids=EXPERT.keys())
def test_flops_of_experts_that_choose_are_those_of_their_capacity(cfg):
    module, seq = moe(cfg), stream(((11,),) * 3, 11, Visibility.BIDIRECTIONAL)
    expected = module.flops(Extent(11, Visibility.BIDIRECTIONAL)).counter
    with FlopCounterMode(display=False) as counter:
        module(noise(3, 11, D).requires_grad_(), seq).h.sum().backward()
    assert counter.get_total_flops() == 3 * 3 * expected


def test_the_opaque_operation_counts_what_its_products_are():
    slots = slots_of(20, 4, 2)
    x, gate_up, down = noise(20, 8), noise(4, 12, 8), noise(4, 8, 6)
    y, h = sliced_experts(x, gate_up, down, *slots)
    steps = (
        (sliced_experts, (x, gate_up, down, *slots)),
        (sliced_experts_backward, (y, x, gate_up, down, *slots, h)),
    )
    for op, args in steps:
        with FlopCounterMode(display=False) as outside:
            op(*args)
        with FlopCounterMode(display=False) as inside:
            op._init_fn(*args)
        assert outside.get_total_flops() == inside.get_total_flops() > 0


def test_flops_and_active_parameters_by_hand():
    cfg = MoE(n_experts=4, top_k=2, ratio=0.5, n_shared=1)
    one = 3 * D * (D // 2)  # weights of an expert
    active = 4 * D + (2 + 1) * one  # router, chosen and shared
    module = cfg.build(D, Visibility.CAUSAL)
    assert module.flops(Extent(10, Visibility.CAUSAL)).model == 2 * 10 * active
    model = ModelConfig(n_layers=3, d_model=D, layers=(Layer(mixer=Attention(head_dim=8), mlp=cfg),))
    found = size(model, CausalLM(), VOCAB.size)
    assert found.total - found.active == 3 * 2 * one


# how it is trained


def test_every_expert_begins_like_a_matrix_of_its_own():
    cfg = MoE(n_experts=4, ratio=2.0)
    module = cfg.build(128, Visibility.CAUSAL)
    initialise(module, n_layers=8, seed=0)
    for e in range(4):
        assert module.gate_up[e].std().item() == pytest.approx(128**-0.5, rel=0.05)
        assert module.down[e].std().item() == pytest.approx(256**-0.5 / 4, rel=0.05)  # sqrt(2 x 8) = 4
    found = roles(module)
    assert found["gate_up"].splits == (256, 256) and found["gate_up"].kind == "matrix"
    assert found["down"].kind == "matrix" and found["down"].residual
    assert not torch.equal(module.gate_up[0], module.gate_up[1])


def test_every_parameter_learns_where_every_expert_has_a_token():
    for cfg in TOKEN.values():
        objective, model = CausalLM(), model_of(CausalLM(), clm_of(cfg))
        out = objective.loss(model, batch_of(objective, seq_len=24, rows=4))
        out.loss.backward()
        assert all(routing.counts.all() for routing in out.routing)
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputation_counts_nothing_twice():
    seq, block = mixed(Visibility.CAUSAL), block_of(TOKEN["deepseek"], Visibility.CAUSAL)
    found = []
    for run in (block, lambda *args: checkpoint(block, *args, use_reentrant=False)):
        x = noise(*seq.doc.shape, D).requires_grad_()
        h, (routing,) = run(x, seq, None)
        (h.square().sum() + routing.prob.square().sum() + routing.z).backward()
        found.append((h, *routing, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# the public implementations


def _same(theirs, module: MoEModule, x: Tensor) -> None:
    h = module(x, stream(((x.shape[1],),) * len(x), x.shape[1])).h
    torch.testing.assert_close(h, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3_norm", "qwen3", "mixtral", "granite"])
@torch.no_grad()
def test_the_layer_is_that_of_transformers_with_the_weights_carried_over(kind):
    transformers = pytest.importorskip("transformers")
    cfg = MoE(ratio=0.5, renormalise=kind != "qwen3", n_shared=2 if kind == "granite" else 0)
    module = moe(cfg).float()
    x = noise(2, 12, D, dtype=torch.float32)
    shared = {"hidden_size": D, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    if kind.startswith("qwen3"):
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        theirs = Qwen3MoeSparseMoeBlock(
            transformers.Qwen3MoeConfig(
                **shared, num_experts=8, moe_intermediate_size=16, norm_topk_prob=cfg.renormalise
            )
        )
        router = theirs.gate
    elif kind == "mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        theirs = MixtralSparseMoeBlock(
            transformers.MixtralConfig(**shared, num_local_experts=8, intermediate_size=16)
        )
        router = theirs.gate
    else:
        from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
            GraniteMoeHybridMLP,
            GraniteMoeHybridMoE,
        )

        granite = transformers.GraniteMoeHybridConfig(
            **shared, num_local_experts=8, intermediate_size=16, shared_intermediate_size=32, mamba_n_heads=8
        )
        theirs, beside = GraniteMoeHybridMoE(granite), GraniteMoeHybridMLP(granite)
        router = theirs.router
        beside.input_linear.weight.copy_(module.shared.gate_up.weight)
        beside.output_linear.weight.copy_(module.shared.down.weight)
    router.weight.copy_(module.router.weight)
    theirs.experts.gate_up_proj.copy_(module.gate_up)
    theirs.experts.down_proj.copy_(module.down)
    _same(theirs(x) + (beside(x) if kind == "granite" else 0), module, x)
