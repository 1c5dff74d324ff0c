"""Update rules equal their definitions, in whatever batches they run; a step happens in whole or not at all."""

import math

import pytest
import torch
from torch import Tensor, nn

from llmtrain.errors import ConfigError
from llmtrain.nn.roles import Role
from llmtrain.optim import muon
from llmtrain.optim.adamw import AdamW
from llmtrain.optim.base import Optim
from llmtrain.optim.composite import CompositeOptimizer
from llmtrain.optim.guard import Guard
from llmtrain.optim.muon import Muon, newton_schulz, orthogonalize
from llmtrain.optim.schedules import Constant, Cosine

HORIZON = 100
STEADY = Constant(warmup=0)
OPTIMS = [AdamW(lr=0.01, ema=0.9), Muon(lr=0.02, adamw_lr=0.01, ema=0.9)]

both = pytest.mark.parametrize("optim", OPTIMS, ids=lambda o: type(o).__name__)


class Net(nn.Module):
    """A parameter of every role: a table, a fused matrix, a plain one, a stack of experts, a gain, a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.qkv = nn.Linear(6, 10, bias=False)
        self.out = nn.Linear(6, 6, bias=False)
        self.norm = nn.RMSNorm(6)
        self.experts = nn.Parameter(torch.empty(3, 8, 6))
        self.head = nn.Linear(6, 9, bias=False)
        self.qkv.roles = {"weight": Role("matrix", (6, 2, 2))}
        self.head.roles = {"weight": Role("head")}
        self.roles = {"experts": Role("matrix")}
        for i, p in enumerate(self.parameters()):
            p.data = noise(p.shape, seed, i)


def noise(shape: torch.Size | tuple[int, ...], *address: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(hash(address) % 2**31)
    return torch.randn(shape, generator=generator, dtype=dtype)


def give_gradients(model: nn.Module, step: int) -> None:
    for i, p in enumerate(model.parameters()):
        p.grad = noise(p.shape, 1, step, i).to(p.dtype)


def train(model: nn.Module, optimizer: CompositeOptimizer, steps: range) -> None:
    for step in steps:
        give_gradients(model, step)
        optimizer.step()


def build(optim: Optim, model: nn.Module) -> CompositeOptimizer:
    return optim.build(model, Cosine(warmup=3), HORIZON)


def everything(model: nn.Module, optimizer: CompositeOptimizer) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in (model.state_dict() | optimizer.tensors()).items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


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


# the step


@both
def test_training_lowers_a_loss_and_the_closure_has_gradients(optim):
    model = Net()
    optimizer = build(optim, model)
    ids = torch.arange(9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        h = model.embed(ids)
        h = model.norm(
            h + model.out(model.qkv(h)[:, :6]) + torch.einsum("eoi,ti->to", model.experts, h)[:, :6]
        )
        loss = nn.functional.cross_entropy(model.head(h), ids.roll(1))
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(60)]
    assert losses[-1] < losses[0] / 4
    assert optimizer.last.updated
    assert optimizer.steps == optimizer.updates == 60


@both
def test_every_rate_follows_the_schedule(optim):
    model, schedule = Net(), Cosine(warmup=3)
    optimizer = build(optim, model)
    for step in range(10):
        give_gradients(model, step)
        optimizer.step()
        factor = schedule.factor(step, HORIZON)
        assert optimizer.last.lr == optim.lr * factor
        assert all(group["lr"] == group["base_lr"] * factor for group in optimizer.param_groups)


@both
def test_clipping_scales_all_gradients_to_the_norm_and_reports_the_norm_before(optim):
    model = Net()
    optimizer = build(optim, model)
    give_gradients(model, 0)
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    optimizer.step()
    assert optimizer.last.grad_norm == pytest.approx(norm, rel=1e-6)
    assert math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters())) == pytest.approx(
        1.0, rel=1e-6
    )


@both
def test_small_gradients_are_not_clipped(optim):
    model = Net()
    optimizer = build(optim, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    assert all((p.grad == 1e-3).all() for p in model.parameters())


def test_tied_parameters_move_once_and_frozen_ones_never():
    model = Net()
    model.head.weight = model.embed.weight
    model.out.weight.requires_grad = False
    optimizer = build(AdamW(lr=0.01), model)
    names = {
        name.removeprefix("adamw.exp_avg.")
        for name in optimizer.tensors()
        if name.startswith("adamw.exp_avg.")
    }
    assert names == {"embed.weight", "qkv.weight", "norm.weight", "experts"}


# the guard


def spoil(model: Net, bad: float) -> None:
    model.experts.grad[1, 2, 3] = bad


@both
@pytest.mark.parametrize("action", ["stop", "rollback"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing_at_all(optim, bad, action):
    model = Net()
    optimizer = optim.build(model, Cosine(warmup=3), HORIZON, Guard(on_nonfinite=action))
    train(model, optimizer, range(4))
    before, counters = everything(model, optimizer), optimizer.counters()
    give_gradients(model, 4)
    spoil(model, bad)
    optimizer.step()
    assert (optimizer.last.verdict.action, optimizer.last.verdict.kind) == (action, "nonfinite")
    assert not math.isfinite(optimizer.last.grad_norm)
    assert_same_bits(everything(model, optimizer), before)
    counters["guard"]["rollbacks"] += action == "rollback"
    assert optimizer.counters() == counters


@both
def test_a_loss_that_is_not_finite_counts_even_if_the_gradient_is(optim):
    model = Net()
    optimizer = build(optim, model)
    before = everything(model, optimizer)
    give_gradients(model, 0)
    optimizer.step(lambda: torch.tensor(math.inf))
    assert optimizer.last.verdict.action == "stop"
    assert_same_bits(everything(model, optimizer), before)


@both
def test_a_skipped_step_advances_the_schedule_and_nothing_else(optim):
    model = Net()
    optimizer = optim.build(model, Cosine(warmup=3), HORIZON, Guard(on_nonfinite="skip"))
    train(model, optimizer, range(4))
    before = everything(model, optimizer)
    give_gradients(model, 4)
    spoil(model, math.nan)
    optimizer.step()
    assert_same_bits(everything(model, optimizer), before)
    assert (optimizer.last.verdict.action, optimizer.last.updated) == ("skip", False)
    assert (optimizer.steps, optimizer.updates) == (5, 4)
    train(model, optimizer, range(5, 6))
    assert optimizer.last.lr == optim.lr * Cosine(warmup=3).factor(5, HORIZON)


@both
def test_moments_after_a_skipped_step_are_those_of_a_run_without_it(optim):
    skipping, without = Net(), Net()
    one = optim.build(skipping, STEADY, HORIZON, Guard(on_nonfinite="skip"))
    other = optim.build(without, STEADY, HORIZON)
    give_gradients(skipping, 99)
    spoil(skipping, math.inf)
    one.step()
    train(skipping, one, range(6))
    train(without, other, range(6))
    assert_same_bits(everything(skipping, one), everything(without, other))


# the average


def test_the_average_is_that_of_the_weights_after_every_update():
    model = Net()
    optimizer = build(AdamW(lr=0.01, ema=0.9), model)
    model.experts.data.mul_(2)  # weights loaded after the optimiser was built
    average = model.experts.detach().clone()
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        average = 0.9 * average + 0.1 * model.experts.detach()
    torch.testing.assert_close(optimizer.tensors()["ema.experts"], average)


def test_averaged_weights_are_lent_and_taken_back_bit_for_bit():
    model = Net()
    optimizer = build(AdamW(lr=0.01, ema=0.9), model)
    with optimizer.ema_weights():
        assert torch.equal(model.experts, Net().experts)  # nothing to average yet
    train(model, optimizer, range(5))
    before = everything(model, optimizer)
    with pytest.raises(KeyError), optimizer.ema_weights():
        assert torch.equal(model.experts, before["ema.experts"])
        raise KeyError("an evaluation that fails")
    assert_same_bits(everything(model, optimizer), before)


def test_without_an_average_the_weights_stand_for_it():
    model = Net()
    optimizer = build(AdamW(lr=0.01), model)
    train(model, optimizer, range(2))
    before = everything(model, optimizer)
    with optimizer.ema_weights():
        assert_same_bits(everything(model, optimizer), before)


def test_the_average_of_bfloat16_weights_is_float32():
    model = Net().to(torch.bfloat16)
    optimizer = build(AdamW(lr=0.01, ema=0.999), model)
    assert {t.dtype for name, t in optimizer.tensors().items() if name.startswith("ema.")} == {torch.float32}
    train(model, optimizer, range(2))
    with optimizer.ema_weights():
        assert model.experts.dtype == torch.bfloat16


# its state


@both
@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(optim, n):
    whole = Net()
    optimizer = build(optim, whole)
    train(whole, optimizer, range(12))

    first = Net()
    stopped = build(optim, first)
    train(first, stopped, range(n))
    tensors = {k: v.clone() for k, v in stopped.tensors().items()}

    second = Net(seed=1)
    resumed = build(optim, second)
    second.load_state_dict(first.state_dict())
    resumed.load_tensors(tensors)
    resumed.load_counters(stopped.counters())
    train(second, resumed, range(n, 12))
    assert_same_bits(everything(second, resumed), everything(whole, optimizer))
    assert resumed.last == optimizer.last


@both
def test_state_has_the_same_names_and_shapes_at_every_step(optim):
    model = Net()
    optimizer = build(optim, model)
    before = {name: (t.shape, t.dtype) for name, t in optimizer.tensors().items()}
    train(model, optimizer, range(2))
    assert {name: (t.shape, t.dtype) for name, t in optimizer.tensors().items()} == before
    assert {"ema.qkv.weight", "adamw.exp_avg.embed.weight", "adamw.exp_avg_sq.norm.weight"} <= before.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("adamw.exp_avg.experts"),
            r"adamw\.exp_avg\.experts is absent in it and float32\[3, 8, 6\] here",
        ),
        (
            lambda t: t.update({"muon.momentum.x": torch.ones(1)}),
            r"muon\.momentum\.x is float32\[1\] in it and absent here",
        ),
        (
            lambda t: t.update({"ema.experts": torch.ones(3, 8, 5)}),
            r"ema\.experts is float32\[3, 8, 5\] in it",
        ),
        (
            lambda t: t.update({"ema.experts": torch.ones(3, 8, 6).double()}),
            r"ema\.experts is float64\[3, 8, 6\] in it",
        ),
    ],
    ids=["missing", "unknown", "shape", "type"],
)
def test_state_that_does_not_fit_is_refused_by_name_and_nothing_moves(change, message):
    model = Net()
    optimizer = build(AdamW(lr=0.01, ema=0.9), model)
    train(model, optimizer, range(2))
    before = everything(model, optimizer)
    tensors = {name: torch.full_like(t, 3.0) for name, t in optimizer.tensors().items()}
    change(tensors)
    with pytest.raises(ConfigError, match=message):
        optimizer.load_tensors(tensors)
    assert_same_bits(everything(model, optimizer), before)


@pytest.mark.parametrize(
    "bad", [{"lr": 0}, {"clip": 0}, {"ema": 1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -1}, {"lrr": 1}]
)
def test_values_that_cannot_work_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AdamW(**({"lr": 0.01} | bad))


def test_a_schedule_that_does_not_fit_is_refused_when_the_optimiser_is_built():
    with pytest.raises(ConfigError, match=r"schedule\.warmup=200"):
        AdamW(lr=0.01).build(Net(), Constant(warmup=200), HORIZON)
