"""A step follows its schedule, and happens in whole or not at all."""

import math

import pytest
import torch
from torch import Tensor, nn

from llmtrain.errors import ConfigError
from llmtrain.optim.adamw import AdamW
from llmtrain.optim.guard import Guard
from llmtrain.optim.schedules import Constant, Cosine
from tests.optimizers import (
    HORIZON,
    STEADY,
    Net,
    assert_same_bits,
    both,
    build,
    everything,
    give_gradients,
    train,
)

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


@pytest.mark.parametrize(
    "bad", [{"lr": 0}, {"clip": 0}, {"ema": 1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -1}, {"lrr": 1}]
)
def test_values_that_cannot_work_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AdamW(**({"lr": 0.01} | bad))


def test_a_schedule_that_does_not_fit_is_refused_when_the_optimiser_is_built():
    with pytest.raises(ConfigError, match=r"schedule\.warmup=200"):
        AdamW(lr=0.01).build(Net(), Constant(warmup=200), HORIZON)
