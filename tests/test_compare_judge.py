"""What is judged of series: who has learned, who is tested and ranked, and where too little is known to say."""

import dataclasses

import numpy as np
import pytest

from compared import BUDGET, about, compared
from llmtrain.compare.judge import judge
from llmtrain.compare.results import Result
from llmtrain.compare.saved import Comparison, Whose, gathered
from llmtrain.errors import DataError
from scattered import A_GROUP, GROUPS, NAMES, drawn, judged, measured, said


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
