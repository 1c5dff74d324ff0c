"""What the statistics of a comparison promise, held against simulated comparisons whose truth is planted."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from llmtrain.compare.results import Estimate, Result
from llmtrain.compare.statistics.estimate import Part, detectable, estimate, p_value
from llmtrain.compare.statistics.holm import holm
from llmtrain.compare.statistics.items import covariance_over_groups
from llmtrain.compare.statistics.panel import Member, panel
from llmtrain.compare.statistics.seeds import bartlett, seed_parts, spread_of
from llmtrain.evaluation.base import Items
from scattered import NAMES, drawn, judged, said

SIMULATED = 200


def simulated(effects: Sequence[float]) -> list[Result]:
    return [judged(drawn(np.random.default_rng(seed), effects)) for seed in range(SIMULATED)]


@pytest.fixture(scope="module")
def under_the_null() -> list[Result]:
    return simulated([0.0] * len(NAMES))


def contains(found: Estimate, truth: float) -> bool:
    assert found.lo is not None and found.hi is not None
    return found.lo <= truth <= found.hi


def test_intervals_cover_at_their_level(under_the_null: list[Result]) -> None:
    differences = [contains(d.estimate, 0.0) for one in under_the_null for d in one.differences]
    values = [contains(s.estimate, 0.5) for one in under_the_null for s in one.standings]
    assert 0.93 <= np.mean(differences) <= 0.97
    assert 0.93 <= np.mean(values) <= 0.97


def test_standard_errors_are_those_of_repeated_comparisons(under_the_null: list[Result]) -> None:
    """What a seed does to single items is in the scatter of seeds and of items: it is counted once."""
    differences = np.array([[d.estimate.value for d in one.differences] for one in under_the_null])
    claimed = np.array([[d.estimate.se for d in one.differences] for one in under_the_null], dtype=float)
    assert np.sqrt((claimed**2).mean()) == pytest.approx(differences.std(), rel=0.06)


def test_nothing_is_shown_where_there_is_nothing(under_the_null: list[Result]) -> None:
    false = np.mean([any(d.shown for d in one.differences) for one in under_the_null])
    ranked = np.mean(
        [any(s.ranks not in (None, (1, len(NAMES))) for s in one.standings) for one in under_the_null]
    )
    at_most = 0.05 + 2 * np.sqrt(0.05 * 0.95 / SIMULATED)  # of which the second half is chance
    assert 0 < false <= at_most
    assert 0 < ranked <= at_most


def test_the_detectable_difference_is_detected_eight_times_in_ten(under_the_null: list[Result]) -> None:
    said = float(np.mean([d.detectable for one in under_the_null for d in one.differences if d.detectable]))
    effects = [0.0] * len(NAMES)
    effects[3] = said
    found = [next(d for d in one.differences if d.series == NAMES[3]) for one in simulated(effects)]
    tested = [one for one in found if one.p is not None]
    assert np.mean([one.shown for one in tested]) == pytest.approx(0.8, abs=0.06)
    assert all(one.estimate.value > 0 for one in tested if one.shown)


def test_groups_are_what_is_resampled() -> None:
    """Every item given twice says no more than once."""
    once = drawn(np.random.default_rng(0), [0.0, 0.05, 0.1])
    twice = [
        (name, seed, Items((*one.id, *(f"{i} again" for i in one.id)), one.group * 2, np.tile(one.value, 2)))
        for name, seed, one in once
    ]
    assert said(judged(twice)) == pytest.approx(said(judged(once)))


def members(found: list[tuple[str, int, Items]]) -> list[Member]:
    return [
        Member(
            name=name,
            role="trained",
            values=np.array([one.value.mean() for n, _, one in found if n == name]),
            items=tuple(one for n, _, one in found if n == name),
            item_se=None,
            groups=len(found[0][2].value),
        )
        for name in dict.fromkeys(n for n, _, _ in found)
    ]


def test_intervals_cover_with_few_groups_too() -> None:
    """Eight of them, where little is known of what lasts, and that must be said in the width."""
    inside = []
    for seed in range(SIMULATED):
        series = members(drawn(np.random.default_rng(seed), [0.0] * 4, groups=8))
        found = panel(series, 0.95)
        inside += [contains(found.difference(one, series[0]), 0.0) for one in series[1:]]
    assert 0.93 <= np.mean(inside) <= 0.985


def test_pairs_of_items_take_their_difficulty_out() -> None:
    series = members(drawn(np.random.default_rng(0), [0.0, 0.0]))
    alone = [
        dataclasses.replace(m, items=None, item_se=float(np.sqrt(panel([m], 0.95).covariance[0, 0])))
        for m in series
    ]
    paired = panel(series, 0.95).difference(*series)
    unpaired = panel(alone, 0.95).difference(*alone)
    assert paired.value == unpaired.value
    assert 1.3 * paired.se < unpaired.se


def test_series_that_scatter_unlike_are_not_pooled() -> None:
    rng = np.random.default_rng(0)
    alike = [rng.normal(0, 1, 3) for _ in range(6)]
    wild = 30 * np.array([-1.0, 0.2, 0.9])
    assert spread_of(alike).pooled
    assert spread_of(alike).dof == 12
    found = spread_of([*alike, wild])
    assert not found.pooled
    assert found.sd is None
    assert found.p_alike < 0.05
    # each with its own: Welch's standard error and degrees of freedom
    parts = seed_parts(found, alike[0], wild)
    assert parts is not None
    mine = estimate(0.0, parts, 0.95)
    welch = scipy.stats.ttest_ind(alike[0], wild, equal_var=False)
    assert mine.dof == pytest.approx(welch.df)
    theirs = welch.confidence_interval(0.95)
    assert mine.hi - mine.lo == pytest.approx(theirs.high - theirs.low)


def test_seeds_that_are_all_equal_narrow_nothing() -> None:
    rng = np.random.default_rng(0)
    alike = [rng.normal(0, 1, 3) for _ in range(4)]
    assert spread_of([*alike, np.full(3, 0.5)]) == spread_of(alike)
    assert spread_of([*alike, np.full(3, 0.1)]) == spread_of(alike)  # whose mean is rounded
    assert spread_of([np.full(3, 0.5)]).sd is None


def test_bartlett_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((3, 3, 3), (2, 5, 9, 3)):
        series = [rng.normal(0, 1 + i, n) for i, n in enumerate(sizes)]
        mine = bartlett(np.array([s.var(ddof=1) for s in series]), np.array(sizes) - 1)
        assert mine == pytest.approx(scipy.stats.bartlett(*series).pvalue)


def test_holm_rejects_what_its_steps_do() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.05, 6)
        adjusted = holm(p.tolist())
        rejected = np.zeros(6, bool)
        for rank, i in enumerate(np.argsort(p)):  # step down until one fails
            if p[i] > 0.05 / (6 - rank):
                break
            rejected[i] = True
        assert [a <= 0.05 for a in adjusted if a is not None] == rejected.tolist()
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]


@pytest.mark.parametrize("dof", [5.0, 12.0, 200.0])
def test_the_detectable_difference_has_its_power(dof: float) -> None:
    found = estimate(0.0, [Part(0.04, dof)], 0.95)
    at = detectable(found, alpha=0.01)
    assert at is not None
    rng = np.random.default_rng(0)
    t = (at + 0.2 * rng.normal(size=200_000)) / (0.2 * np.sqrt(rng.chisquare(dof, 200_000) / dof))
    p = 2 * scipy.stats.t.sf(np.abs(t), dof)
    assert np.mean((p <= 0.01) & (t > 0)) == pytest.approx(0.8, abs=0.005)
    assert p_value(dataclasses.replace(found, value=0.0)) == pytest.approx(1.0)


def test_the_bootstrap_of_a_ratio_is_that_of_its_sums() -> None:
    """Against the linearised variance of a ratio over groups."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 200, 2000)
    weight = rng.uniform(1, 9, 2000)
    value = rng.normal(2, 1, 2000) + rng.normal(0, 0.5, 200)[group]
    one = Items(tuple(map(str, range(2000))), tuple(map(str, group)), value, weight)
    covariance, groups = covariance_over_groups([one])
    assert covariance is not None
    ratio = (weight * value).sum() / weight.sum()
    residual = np.bincount(group, weight * (value - ratio)) / weight.sum()
    assert groups == 200
    assert covariance[0, 0] == pytest.approx((residual**2).sum(), rel=0.1)


def test_series_that_scatter_alike_to_the_last_digit_are_alike() -> None:
    """The statistic of equal variances may come out below zero by rounding, where the distribution has no value."""
    for scatter in np.random.default_rng(0).uniform(0.001, 1, (200, 3)):
        spread = spread_of([scatter, scatter, scatter])
        assert spread.pooled and spread.p_alike == pytest.approx(1)
