"""A mixture of experts is what its definition says, hears no more than it may, and learns as a whole."""

import dataclasses
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.model import Block, Layer, ModelConfig
from llmtrain.nn.roles import roles
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops import backend
from llmtrain.types import NO_DOC, Visibility
from tests.mixtures import EXPERT, TOKEN, D, choices, clm_of, moe, one_a_row, token_choices
from tests.tiny import batch_of, mixed, model_of, noise, stream

visibilities = pytest.mark.parametrize("visibility", Visibility)


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
