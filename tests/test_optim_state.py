"""What an optimiser keeps: an average is that of the weights, and a resumed run is the uninterrupted one."""

import pytest
import torch

from llmtrain.errors import ConfigError
from llmtrain.optim.adamw import AdamW
from tests.optimizers import Net, assert_same_bits, both, build, everything, train

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
