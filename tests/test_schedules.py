"""Schedules start above 0, reach the peak, end at their final value, and jump nowhere."""

from itertools import pairwise

import pytest

from llmtrain.errors import ConfigError
from llmtrain.optim.schedules import WSD, Constant, Cosine, Linear, Schedule

HORIZON = 1000

SCHEDULES = [
    Cosine(warmup=0.05),
    Cosine(warmup=0, final=0),
    Linear(warmup=50, final=0.2),
    WSD(warmup=0.02, decay=0.3, shape="linear", final=0.05),
    WSD(warmup=20, decay=200, shape="sqrt"),
    WSD(warmup=20, decay=0.1, shape="cosine", final=0.1),
    WSD(warmup=10, decay=0),
    Constant(warmup=0.1),
]


@pytest.fixture(params=SCHEDULES, ids=repr)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


def test_the_first_step_already_learns(schedule):
    assert schedule.factor(0, HORIZON) > 0


def test_the_peak_is_1_where_the_warmup_ends_and_nowhere_exceeded(schedule):
    factors = [schedule.factor(step, HORIZON) for step in range(HORIZON + 1)]
    assert factors[schedule.warmup_steps(HORIZON)] == max(factors) == 1


def test_it_rises_before_the_peak_and_never_after(schedule):
    factors = [schedule.factor(step, HORIZON) for step in range(HORIZON + 10)]
    peak = schedule.warmup_steps(HORIZON)
    assert all(a < b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))


def test_it_ends_at_its_final_value_at_the_horizon_and_stays_there(schedule):
    final = getattr(schedule, "final", 1.0) if schedule.decay_steps(HORIZON) else 1.0
    for step in (HORIZON, HORIZON + 1, 10 * HORIZON):
        assert schedule.factor(step, HORIZON) == pytest.approx(final, abs=1e-12)


def test_it_is_continuous(schedule):
    # a step of a ramp of n moves by 1/n, of a cosine by at most pi/2 of that, the first of 1 - sqrt by 1/sqrt(n)
    warmup, decay = schedule.warmup_steps(HORIZON), schedule.decay_steps(HORIZON)
    steepest = max(1 / (warmup + 1), decay and decay**-0.5)
    factors = [schedule.factor(step, HORIZON) for step in range(HORIZON + 1)]
    assert all(abs(a - b) <= steepest + 1e-12 for a, b in pairwise(factors))


def test_warmup_and_decay_are_the_steps_below_the_peak(schedule):
    below = [step for step in range(HORIZON + 1) if schedule.factor(step, HORIZON) < 1]
    assert len(below) == schedule.warmup_steps(HORIZON) + schedule.decay_steps(HORIZON)


def test_the_shapes_of_the_decay_are_those_of_their_formulas():
    half = HORIZON - 200  # halfway through a decay of 400
    assert WSD(decay=400, shape="linear").factor(half, HORIZON) == pytest.approx(0.5)
    assert WSD(decay=400, shape="cosine").factor(half, HORIZON) == pytest.approx(0.5)
    assert WSD(decay=400, shape="sqrt").factor(half, HORIZON) == pytest.approx(1 - 0.5**0.5)
    assert Cosine(warmup=0, final=0.1).factor(HORIZON // 2, HORIZON) == pytest.approx(0.55)


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_a_decay_is_as_long_as_its_own_horizon(kind):
    for horizon in (1, 7, 100, 12345):
        schedule = kind(warmup=0.1, final=0.1)
        assert schedule.warmup_steps(horizon) + schedule.decay_steps(horizon) == horizon
        assert schedule.factor(horizon, horizon) == pytest.approx(0.1)
        assert schedule.factor(horizon - 1, horizon) > 0.1


def test_runs_of_different_length_share_the_plateau_of_wsd():
    schedule = WSD(warmup=50, decay=0.2)
    assert all(schedule.factor(step, 1000) == schedule.factor(step, 4000) for step in range(801))


def test_a_length_is_steps_from_1_on_and_a_fraction_below():
    assert Constant(warmup=1).warmup_steps(HORIZON) == 1
    assert Constant(warmup=30).warmup_steps(HORIZON) == 30
    assert Constant(warmup=0.29).warmup_steps(100) == 29  # 0.29 * 100 < 29 in floating point
    assert WSD(warmup=0.5, decay=0.5).warmup_steps(3) + WSD(warmup=0.5, decay=0.5).decay_steps(3) <= 3


@pytest.mark.parametrize(
    "schedule", [WSD(warmup=0.9, decay=0.2), Cosine(warmup=2000), Constant(warmup=1001)], ids=repr
)
def test_lengths_that_do_not_fit_in_the_horizon_are_refused(schedule):
    with pytest.raises(ConfigError, match=r"schedule\.warmup=.* but the run has 1000"):
        schedule.check(HORIZON)


def test_a_broken_number_of_steps_is_refused():
    with pytest.raises(ConfigError, match=r"schedule\.warmup=1\.5 is no whole number"):
        Constant(warmup=1.5).check(HORIZON)
