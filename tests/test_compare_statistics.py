"""What the statistics of a comparison promise, held against simulated comparisons whose truth is planted."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from compared import BUDGET, about, compared
from llmtrain.compare.judge import judge
from llmtrain.compare.results import Estimate, Result
from llmtrain.compare.saved import Comparison, Whose, gathered
from llmtrain.compare.statistics.estimate import Part, detectable, estimate, p_value
from llmtrain.compare.statistics.holm import holm
from llmtrain.compare.statistics.items import covariance_over_groups
from llmtrain.compare.statistics.panel import Member, panel
from llmtrain.compare.statistics.seeds import bartlett, seed_parts, spread_of
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items, Measured

SIMULATED = 200
NAMES = tuple(one.name for one in about().series)
GROUPS, A_GROUP = 30, 3


def drawn(
    rng: np.random.Generator, effects: Sequence[float], groups: int = GROUPS
) -> list[tuple[str, int, Items]]:
    """Values of items: of seeds, items, series on items, groups, and of everything at once."""
    n = groups * A_GROUP
    group = np.repeat(np.arange(groups), A_GROUP)
    ids, names = tuple(map(str, range(n))), tuple(map(str, group))
    hard = rng.normal(0, 0.2, n) + rng.normal(0, 0.1, groups)[group]
    found = []
    for name, effect in zip(NAMES, effects, strict=False):
        own = rng.normal(0, 0.1, n) + rng.normal(0, 0.05, groups)[group]
        for seed in range(3):
            noise = rng.normal(0, 0.015) + rng.normal(0, 0.2, n)
            found.append((name, seed, Items(ids, names, 0.5 + effect + hard + own + noise)))
    return found


def measured(items: Items, **more: object) -> Measured:
    plain = Measured(
        yardstick="y", kind="features", split="test", metric="accuracy", value=float(items.value.mean()),
        better="higher", n=len(items.value), items=items,
    )  # fmt: skip
    return plain._replace(**more)


def judged(found: list[tuple[str, int, Items]]) -> Result:
    rows, items = gathered(
        (Whose(series=name, role="trained", seed=seed, budget=BUDGET), measured(one))
        for name, seed, one in found
    )
    [result] = judge(Comparison(about=about(), rows=rows), items).results
    return result


@pytest.mark.parametrize(
    ("ceilings", "said"), [((1.0, 1.0), 1.0), ((24.0, 40.0), None), ((None, 24.0), 24.0)]
)
def test_a_ceiling_is_told_where_all_have_the_same(
    ceilings: tuple[float | None, ...], said: float | None
) -> None:
    """The most directions that features can use is their width, which differs where each has its own size."""
    found = [one for one in drawn(np.random.default_rng(0), [0.0, 0.1]) if one[1] == 0]
    rows, items = gathered(
        (Whose(series=name, role="trained", seed=0, budget=BUDGET), measured(one)._replace(ceiling=ceiling))
        for (name, _, one), ceiling in zip(found, ceilings, strict=True)
    )
    [result] = judge(Comparison(about=about(), rows=rows), items).results
    assert result.ceiling == said


def simulated(effects: Sequence[float]) -> list[Result]:
    return [judged(drawn(np.random.default_rng(seed), effects)) for seed in range(SIMULATED)]


@pytest.fixture(scope="module")
def under_the_null() -> list[Result]:
    return simulated([0.0] * len(NAMES))


def said(result: Result) -> dict[str, float]:
    """Every number that a reader would go by."""
    numbers: dict[str, float] = {}
    for one in (*result.standings, *result.differences):
        kind = type(one).__name__
        for name in ("value", "lo", "hi"):
            numbers[f"{kind} {one.series} {name}"] = getattr(one.estimate, name)
    for standing in result.standings:
        best, worst = standing.ranks or (0, 0)
        numbers |= {f"{standing.series} from": best, f"{standing.series} to": worst}
    for difference in result.differences:
        numbers[f"{difference.series} p"] = -1.0 if difference.p_holm is None else difference.p_holm
        numbers[f"{difference.series} detectable"] = difference.detectable or -1.0
    return numbers


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


def test_the_order_of_rows_changes_nothing() -> None:
    """But for the first metric of a yardstick, which is its main one."""
    comparison, items = compared()
    kept = [row for row in comparison.rows if row.metric != "macro_f1"]
    forth, back = (
        judge(dataclasses.replace(comparison, rows=tuple(rows)), items).results for rows in (kept, kept[::-1])
    )
    for one, same in zip(forth, reversed(back), strict=True):
        assert said(one) == pytest.approx(said(same))


def test_lower_is_better_is_higher_is_better_upside_down() -> None:
    found = drawn(np.random.default_rng(1), [0.0, 0.2, -0.2, 0.05, 0, 0, 0])

    def turned(sign: int) -> Result:
        rows, items = gathered(
            (
                Whose(series=name, role="trained", seed=seed, budget=BUDGET),
                measured(
                    one._replace(value=sign * one.value),
                    value=sign * float(one.value.mean()),
                    better="higher" if sign > 0 else "lower",
                ),
            )
            for name, seed, one in found
        )
        return judge(Comparison(about=about(), rows=rows), items).results[0]

    up, down = turned(1), turned(-1)
    assert [s.ranks for s in up.standings] == [s.ranks for s in down.standings]
    assert [s.ranks for s in up.standings][1] == (1, 1)
    assert [s.ranks for s in up.standings][2] == (7, 7)
    assert [d.estimate.value for d in up.differences] == [-d.estimate.value for d in down.differences]
    assert [d.p for d in up.differences] == pytest.approx([d.p for d in down.differences])


def test_a_series_has_learned_iff_it_beats_every_baseline() -> None:
    comparison, items = compared()
    [result] = [
        r
        for r in judge(comparison, items).results
        if (r.yardstick, r.metric) == ("probe_name_role", "accuracy")
    ]
    standing = {one.series: one for one in result.standings}
    assert [name for name, one in standing.items() if not one.learned] == ["contrastive/dense"]
    assert standing["contrastive/dense"].not_beaten == ("untrained", "unigram")
    assert standing["contrastive/dense"].ranks is None
    assert all(one.ranks for one in standing.values() if one.learned)


def test_what_means_something_else_is_neither_tested_nor_ranked() -> None:
    comparison, items = compared()
    [result] = [r for r in judge(comparison, items).results if r.yardstick == "suffix_bits_per_byte"]
    [odd] = [one for one in result.standings if not one.common]
    assert odd.series == "mlm/dense"
    assert odd.note
    assert odd.ranks is None
    [difference] = [one for one in result.differences if one.series == "mlm/dense"]
    assert difference.p is None
    assert not difference.shown
    assert difference.estimate.lo is not None


def test_under_five_degrees_of_freedom_there_is_no_p() -> None:
    """Two series of three seeds have 4, three have 6."""
    few = judged(drawn(np.random.default_rng(0), [0.0, 1.0]))
    assert few.spread.dof == 4
    assert [(d.p, d.p_holm, d.shown, d.detectable) for d in few.differences] == [(None, None, False, None)]
    assert few.differences[0].estimate.lo > 0
    assert [s.ranks for s in few.standings] == [None, None]
    enough = judged(drawn(np.random.default_rng(0), [0.0, 1.0, 0.0]))
    assert enough.spread.dof == 6
    assert enough.differences[0].shown


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


def test_models_that_say_the_same_of_every_item_do_not_differ() -> None:
    """Probes that always say the commonest class: nothing scatters, and nothing is made of rounding."""
    items = drawn(np.random.default_rng(0), [0.0])[0][2]._replace(
        value=(np.arange(GROUPS * A_GROUP) % 7 == 0) * 1.0
    )
    result = judged([(name, seed, items) for name in NAMES[:3] for seed in range(3)])
    assert result.spread.sd is None
    assert all(s.estimate.lo < s.estimate.value < s.estimate.hi for s in result.standings)
    for one in result.differences:
        assert one.estimate.value == 0.0
        assert one.estimate.hi == pytest.approx(0.0, abs=1e-6)
        assert not one.shown


def test_geometry_is_of_seeds_alone() -> None:
    """It describes these texts: nothing is resampled, and no more is claimed."""
    comparison, items = compared()
    [result] = [one for one in judge(comparison, items).results if one.kind == "geometry"]
    for one in result.standings:
        assert one.estimate.se == pytest.approx(result.spread.sd / np.sqrt(3))
        assert (one.learned, one.ranks) == (None, None)


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


def test_other_items_or_another_order_are_refused() -> None:
    found = drawn(np.random.default_rng(0), [0.0, 0.0])
    name, seed, one = found[-1]
    found[-1] = (name, seed, one._replace(id=one.id[::-1]))
    with pytest.raises(DataError, match="y/accuracy: models were scored on different items"):
        judged(found)


def test_one_group_says_nothing_of_others() -> None:
    found = [
        (name, seed, one._replace(group=("the only one",) * len(one.group)))
        for name, seed, one in drawn(np.random.default_rng(0), [0.0, 0.3, 0.0])
    ]
    result = judged(found)
    assert result.groups == 1
    assert all(s.estimate.lo is None for s in result.standings)
    assert not any(d.shown for d in result.differences)


def test_series_that_scatter_alike_to_the_last_digit_are_alike() -> None:
    """The statistic of equal variances may come out below zero by rounding, where the distribution has no value."""
    for scatter in np.random.default_rng(0).uniform(0.001, 1, (200, 3)):
        spread = spread_of([scatter, scatter, scatter])
        assert spread.pooled and spread.p_alike == pytest.approx(1)
