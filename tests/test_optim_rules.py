"""Update rules equal their definitions, in whatever batches they run."""

import math

import pytest
import torch
from torch import Tensor, nn

from llmtrain.nn.roles import Role
from llmtrain.optim import muon
from llmtrain.optim.adamw import AdamW
from llmtrain.optim.muon import Muon, newton_schulz, orthogonalize
from llmtrain.optim.schedules import Cosine
from tests.optimizers import HORIZON, STEADY, Net, build, give_gradients, noise, train

# AdamW


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_torchs_with_decay_on_everything_but_vectors(fused):
    ours, theirs = Net().double(), Net().double()
    optimizer = AdamW(lr=0.01, weight_decay=0.3, clip=None, fused=fused).build(
        ours, Cosine(warmup=3), HORIZON
    )
    reference = torch.optim.AdamW(
        [
            {"params": [p for n, p in theirs.named_parameters() if n != "norm.weight"], "weight_decay": 0.3},
            {"params": [theirs.norm.weight], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        foreach=False,
        fused=False,
    )
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.01 * Cosine(warmup=3).factor(step, HORIZON)
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


# Muon


def test_newton_schulz_brings_singular_values_close_to_1():
    for shape in [(1, 32, 32), (3, 16, 64), (2, 40, 50)]:
        u, _, v = torch.linalg.svd(noise(shape), full_matrices=False)
        x = u * torch.logspace(0, -2, shape[1]) @ v  # a condition number of 100
        s = torch.linalg.svdvals(newton_schulz(x, steps=5, dtype=torch.float32))
        assert s.min() > 0.6
        assert s.max() < 1.3


def test_newton_schulz_converges_to_the_polar_factor_with_the_coefficients_of_taylor():
    x = noise((4, 12, 20), dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    exact = newton_schulz(x, steps=40, dtype=torch.float64, coefficients=(15 / 8, -10 / 8, 3 / 8))
    torch.testing.assert_close(exact, u @ v, rtol=0, atol=1e-10)


def test_the_direction_of_an_update_is_that_of_the_polar_factor():
    x = noise((4, 32, 64))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    for dtype, least in [(torch.float32, 0.98), (torch.bfloat16, 0.98)]:
        update = newton_schulz(x, steps=5, dtype=dtype)
        assert torch.cosine_similarity(update.flatten(1), (u @ v).flatten(1)).min() > least


def test_a_batch_of_matrices_is_made_orthogonal_one_by_one(monkeypatch):
    shapes = [(6, 10), (10, 6), (3, 6, 10), (6, 6), (10, 6), (2, 10, 6)]
    matrices = [noise(s, i, dtype=torch.float64) for i, s in enumerate(shapes)]
    alone = [
        torch.stack([newton_schulz(m[None], steps=5, dtype=torch.float64)[0] for m in x]).reshape(x.shape)
        if x.shape[-2] <= x.shape[-1]
        else torch.stack([newton_schulz(m.mT[None], steps=5, dtype=torch.float64)[0].mT for m in x]).reshape(
            x.shape
        )
        for x in [m.reshape(-1, *m.shape[-2:]) for m in matrices]
    ]
    for limit in (muon.BATCH_ELEMENTS, 130, 1):  # all at once, some together, each by itself
        monkeypatch.setattr(muon, "BATCH_ELEMENTS", limit)
        together = orthogonalize(matrices, steps=5, dtype=torch.float64)
        for m, x, y in zip(matrices, together, alone, strict=True):
            assert x.shape == m.shape
            torch.testing.assert_close(x, y.reshape(m.shape), rtol=1e-10, atol=1e-12)


class Matrices(nn.Module):
    def __init__(self, *weights: Tensor, splits: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.roles = {f"weights.{i}": Role("matrix", splits) for i in range(len(weights))}


@pytest.mark.parametrize("scale", ["spectral", "rms"])
def test_a_fused_matrix_moves_as_its_parts_would(scale):
    parts = [noise((rows, 6), rows, dtype=torch.float64) for rows in (12, 4, 3)]
    apart, fused = Matrices(*parts), Matrices(torch.cat(parts), splits=(12, 4, 3))
    optim = Muon(lr=0.02, adamw_lr=0.01, scale=scale, clip=None)
    one, other = build(optim, apart), build(optim, fused)
    for step in range(5):
        grads = [noise(p.shape, step, i, dtype=torch.float64) for i, p in enumerate(parts)]
        for p, grad in zip(apart.parameters(), grads, strict=True):
            p.grad = grad
        fused.weights[0].grad = torch.cat(grads)
        one.step()
        other.step()
    torch.testing.assert_close(fused.weights[0], torch.cat(list(apart.parameters())), rtol=1e-10, atol=1e-12)


def test_muon_in_a_plain_loop_is_muon():
    weight, lr, decay, beta = noise((5, 8), dtype=torch.float64), 0.02, 0.1, 0.95
    model = Matrices(weight.clone())
    optimizer = Muon(lr=lr, adamw_lr=0.01, weight_decay=decay, clip=None).build(model, STEADY, HORIZON)
    momentum = torch.zeros_like(weight)
    for step in range(5):
        grad = noise((5, 8), step, dtype=torch.float64)
        momentum = beta * momentum + (1 - beta) * grad
        x = beta * momentum + (1 - beta) * grad
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        weight = weight - lr * decay * weight - lr * x
        model.weights[0].grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(model.weights[0].detach(), weight, rtol=1e-10, atol=1e-12)


def test_the_scales_make_updates_of_the_documented_size():
    shapes = [(64, 16), (16, 64), (32, 32)]
    for scale in ("spectral", "rms"):
        model = Matrices(*(torch.zeros(s) for s in shapes))
        optimizer = Muon(lr=1.0, adamw_lr=1.0, scale=scale, clip=None).build(model, STEADY, HORIZON)
        give_gradients(model, 0)
        optimizer.step()
        for (out, into), p in zip(shapes, model.parameters(), strict=True):
            if scale == "spectral":
                assert torch.linalg.matrix_norm(p, 2).item() == pytest.approx(
                    math.sqrt(max(1, out / into)), rel=0.25
                )
            else:  # AdamW's updates have a root mean square of about 0.2
                assert p.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_muon_leaves_tables_heads_and_vectors_to_adamw():
    one, other = Net(), Net()
    train(one, build(Muon(lr=0.02, adamw_lr=0.01, clip=None), one), range(5))
    train(other, build(AdamW(lr=0.01, clip=None), other), range(5))
    same = {n for n, p in one.named_parameters() if torch.equal(p, other.get_parameter(n))}
    assert same == {"embed.weight", "norm.weight", "head.weight"}


def test_a_matrix_without_gradient_only_decays():
    model = Net()
    optimizer = Muon(lr=0.5, adamw_lr=0.25, weight_decay=0.1).build(model, STEADY, HORIZON)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    rate = {
        "qkv.weight": 0.5,
        "out.weight": 0.5,
        "experts": 0.5,
        "embed.weight": 0.25,
        "head.weight": 0.25,
        "norm.weight": 0,
    }
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.1 * rate[name]))
