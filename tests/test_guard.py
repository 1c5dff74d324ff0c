"""The guard's decisions: from all ranks' numbers alone, against a window that bad numbers never enter."""

import json
import math
import random

import pytest

from llmtrain.optim.guard import Guard, Judge, robust_score

NAN, INF = math.nan, math.inf


def losses(n: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [5 - 0.01 * i + draw.gauss(0, 0.05) for i in range(n)]


def filled(**changes: object) -> Judge:
    judge = Judge(Guard(**({"window": 16, "threshold": 8.0, "on_spike": "skip"} | changes)))  # type: ignore[arg-type]
    for loss in losses(16):
        judge.judge([loss], [1.0])
    return judge


def test_the_score_is_in_standard_deviations_and_ignores_outliers_in_the_window() -> None:
    draw = random.Random(0)
    window = [draw.gauss(3, 0.2) for _ in range(2001)]
    assert robust_score(4.0, window) == pytest.approx(5, rel=0.1)
    assert robust_score(2.0, window) == pytest.approx(-5, rel=0.1)
    assert robust_score(4.0, [*window, *[1e9] * 100]) == pytest.approx(5, rel=0.15)


def test_a_window_that_does_not_vary_makes_no_spike_of_noise() -> None:
    assert robust_score(2.01, [2.0] * 16) == pytest.approx(0.5)
    assert robust_score(0.0, [0.0] * 16) == 0


@pytest.mark.fault("F18")
def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    judge = Judge(Guard(window=16, threshold=8.0, on_spike="skip"))
    for loss in [1e6, *losses(15)]:
        assert judge.judge([loss], [1.0]).taken
    assert judge.judge([100.0], [1.0]).kind == "spike"


@pytest.mark.fault("F18")
@pytest.mark.parametrize("bad", [NAN, INF, 100.0])
def test_what_was_skipped_never_enters_the_window(bad: float) -> None:
    judge = filled(on_nonfinite="skip")
    before = list(judge.losses)
    assert judge.judge([bad], [1.0]).action == "skip"
    assert list(judge.losses) == before
    assert judge.judge([4.8], [1.0]).action == "update"
    assert list(judge.losses) == [*before[1:], 4.8]


@pytest.mark.fault("F18")
def test_a_spike_that_is_only_logged_is_trained_on_and_becomes_the_level_if_it_stays() -> None:
    judge = filled(on_spike="log")
    actions = [judge.judge([9.0], [1.0]).action for _ in range(12)]
    assert actions[0] == "log" and actions[-1] == "update"


@pytest.mark.fault("F18")
def test_without_a_threshold_no_loss_is_a_spike() -> None:
    judge = filled(threshold=None)
    assert judge.judge([1e9], [1e9]) == ("update", None, None)
    assert judge.losses[-1] == 1e9  # for a later start with one


@pytest.mark.fault("F17")
@pytest.mark.parametrize(
    ("losses", "norms"), [([4.8, NAN], [1.0, 1.0]), ([4.8, 4.8], [1.0, INF]), ([INF, -INF], [1.0, 1.0])]
)
def test_one_rank_is_enough(losses: list[float], norms: list[float]) -> None:
    assert filled().judge(losses, norms) == ("stop", "nonfinite", None)


@pytest.mark.fault("F18")
def test_a_spike_is_one_of_the_mean_over_ranks() -> None:
    assert filled().judge([4.8, 5.0], [1.0, 1.0]).taken
    assert filled().judge([4.8, 100.0], [1.0, 1.0]).kind == "spike"


@pytest.mark.fault("F17", "F19")
def test_skips_in_a_row_and_rollbacks_are_bounded() -> None:
    judge = filled(on_nonfinite="skip", max_skips=2)
    numbers = [NAN, NAN, 4.8, NAN, 100.0, NAN]
    actions = [judge.judge([n], [1.0]).action for n in numbers]
    assert actions == ["skip", "skip", "update", "skip", "skip", "stop"]
    judge = filled(on_nonfinite="rollback", max_rollbacks=2)
    actions = [judge.judge([n], [1.0]).action for n in (NAN, 4.8, NAN, 4.8, NAN)]
    assert actions == ["rollback", "update", "rollback", "update", "stop"]


@pytest.mark.fault("F12", "F18")
@pytest.mark.parametrize("n", [0, 7, 16, 40])
def test_a_judge_that_is_continued_decides_as_the_one_that_was_not(n: int) -> None:
    cfg = Guard(window=16, threshold=8.0, on_spike="skip", on_nonfinite="skip", max_skips=2)
    numbers = losses(60)
    for i in (20, 39, 40, 41):
        numbers[i] = 100.0 if i % 2 else NAN
    whole, first, second = Judge(cfg), Judge(cfg), Judge(cfg)
    expected = [whole.judge([x], [1.0]) for x in numbers]
    found = [first.judge([x], [1.0]) for x in numbers[:n]]
    second.load_values(json.loads(json.dumps(first.values(), allow_nan=False)))
    assert found + [second.judge([x], [1.0]) for x in numbers[n:]] == expected
    assert second.values() == whole.values()
