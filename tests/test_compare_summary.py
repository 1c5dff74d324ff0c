"""What a comparison says in sentences: who differs, who has learned, how errors grow, and what is weak."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from compared import BUDGET, YARDSTICKS, Planted, by_series, compared
from llmtrain.compare.judge import judge
from llmtrain.compare.laws import LEAST_BUDGETS, error, spent
from llmtrain.compare.publish import publish
from llmtrain.compare.results import Estimate
from llmtrain.compare.saved import Row, read_comparison
from llmtrain.compare.summary import statements, summary
from llmtrain.compare.table import tables
from llmtrain.compare.words import NO_DIFFERENCE, NOT_LEARNED

PLAIN = Planted(
    "plain", "accuracy", "features", "higher", by_series(0.6, 0.4, 0.8, 0.2, 0.6, 0.6, 0.6), 0.3, {"unigram": 0.3},
    chance=0.25, ceiling=1.0,
)  # fmt: skip


def test_a_baseline_that_was_not_measured_is_said() -> None:
    """As where a contrastive series is what all are held against, which has no likelihood."""
    suffix = next(one for one in YARDSTICKS if one.name == "suffix_bits_per_byte")
    trained = {name: value for name, value in suffix.trained.items() if name != "clm/dense"}
    comparison, items = compared(yardsticks=(suffix._replace(trained=trained),))
    said = " ".join(statements(judge(comparison, items), BUDGET))
    assert "clm/dense was not measured, so nothing is held against it" in said


def test_the_summary_says_who_differs_and_who_does_not() -> None:
    [text] = summary(judge(*compared(yardsticks=(PLAIN,))))
    size = r"\(by 0\.\d+ \[0\.\d+, 0\.\d+\]\)"
    assert re.search(f"denoising/dense {size} is better; mlm/dense {size} is worse;", text)
    assert re.search(rf"{NO_DIFFERENCE} of clm/moe, clm/ssm and clm/hybrid, of which 0\.0\d+ would", text)
    assert f"contrastive/dense (not shown to beat its untrained model and unigram) is {NOT_LEARNED}" in text


def test_where_nothing_is_learned_nothing_is_compared() -> None:
    nothing = PLAIN._replace(trained=by_series(*[0.3] * 7), baselines={"tfidf": 0.7})
    judged = judge(*compared(yardsticks=(nothing,)))
    [text] = summary(judged)
    assert "no series has learned at this budget: none was shown to beat tfidf" in text
    assert "better" not in text
    assert all(one.ranks is None for one in judged.results[0].standings)


def test_of_one_seed_nothing_is_claimed(tmp_path: Path) -> None:
    """No interval, no difference, and nobody is said to have learned or not."""
    printed = " ".join(publish(*compared(seeds=(0,), yardsticks=YARDSTICKS[:2]), tmp_path).split())
    comparison, _ = read_comparison(tmp_path)
    for result in comparison.results:
        assert {(s.learned, s.ranks, s.estimate.lo) for s in result.standings} == {(None, None, None)}
        assert not any(one.shown for one in result.differences)
    assert "not tested, since there are too few seeds" in printed
    assert "with one seed each" in printed


def test_the_summary_owns_up_to_what_is_weak() -> None:
    comparison, items = compared(yardsticks=(PLAIN,))
    stated = comparison.about
    weak = dataclasses.replace(
        stated,
        cells=(dataclasses.replace(stated.cells[0], status="diverged"), *stated.cells[1:]),
        tuning=(dataclasses.replace(stated.tuning[0], inside=False), *stated.tuning[1:]),
    )
    rows = tuple(row for row in comparison.rows if (row.series, row.seed) != ("clm/dense", 0))
    [text] = summary(judge(dataclasses.replace(comparison, about=weak, rows=rows), items))
    assert f"Not finished, and so not in any number: {stated.cells[0].run}." in text
    assert "Fewer than 3 seeds: clm/dense." in text
    assert "The best learning rate of clm/dense is the last tried" in text


def test_compute_is_that_of_the_runs_that_finished() -> None:
    comparison, _ = compared(yardsticks=(PLAIN,))
    first, *others = comparison.about.cells
    half = dataclasses.replace(first, status="diverged", flops_model=first.flops_model // 2)
    about = dataclasses.replace(comparison.about, cells=(half, *others))
    cut = dataclasses.replace(comparison, about=about)
    assert spent(cut, first.series, first.budget) == spent(comparison, first.series, first.budget)


def test_scatter_that_is_unlike_is_said() -> None:
    comparison, items = compared(yardsticks=(PLAIN._replace(items=0),))
    wild = tuple(
        dataclasses.replace(row, value=0.5 + 0.3 * (row.seed - 1))
        if (row.series, row.role) == ("clm/ssm", "trained") and row.seed is not None
        else row
        for row in comparison.rows
    )
    judged = judge(dataclasses.replace(comparison, rows=wild), items)
    assert not judged.results[0].spread.pooled
    assert all(one.p is None for one in judged.results[0].differences)
    assert "Where series scatter unlike (plain, accuracy)" in summary(judged)[0]


def test_errors_grow_less_by_the_planted_law() -> None:
    """By a tenth for each doubling, alike for all; so a series with half the error is ahead by a known factor."""
    budgets = tuple(BUDGET // 2**k for k in reversed(range(LEAST_BUDGETS)))
    one = PLAIN._replace(trained=by_series(0.60, 0.66, 0.60, None, None, None, None), seed_sd=0.002)
    found = judge(*compared(yardsticks=(one,), budgets=budgets)).growth
    assert [g.series for g in found] == ["clm/dense", "mlm/dense", "denoising/dense"]
    alpha = -np.log2(0.9)
    for g in found:
        assert g.exponent.lo is not None and g.exponent.hi is not None
        assert g.exponent.lo - 0.03 <= alpha <= g.exponent.hi + 0.03
    assert found[0].multipliers == ()
    saved = (0.34 / 0.40) ** (1 / alpha)
    assert len(found[1].multipliers) == 3
    for multiplier in found[1].multipliers:
        assert multiplier.value == pytest.approx(saved, rel=0.25)
    assert judge(*compared(yardsticks=(one,), budgets=budgets[1:])).growth == ()


def test_bits_a_byte_grow_towards_none() -> None:
    """Nobody knows their ceiling: errors are shares of the way from 0 bits to chance."""
    [suffix] = [one for one in YARDSTICKS if one.name == "suffix_bits_per_byte"]
    result = judge(*compared(yardsticks=(suffix,))).results[0]
    assert result.ceiling is None
    assert error(result, Estimate(value=2.0, lo=1.0, hi=4.0)) == Estimate(value=0.25, lo=0.125, hi=0.5)


def test_a_note_stands_where_it_holds() -> None:
    """Said once where it is of all series, with a number at one where it is not; never of a seed alone."""
    comparison, items = compared(yardsticks=(PLAIN,))

    def noted(row: Row) -> str:
        own = "; of one" if row.series == "clm/ssm" else ""
        return f"among 240{own}{'; of a seed' if row.seed == 0 else ''}"

    rows = tuple(dataclasses.replace(row, note=noted(row)) for row in comparison.rows)
    judged = judge(dataclasses.replace(comparison, rows=rows), items)
    table = tables(judged)[0]
    assert [row[0] for row in table.rows if "¹" in row[1]] == ["clm/ssm"]
    assert "¹ of one." in table.caption
    assert "Plain, accuracy: among 240." in table.caption
    assert "of a seed" not in table.caption
    assert "Of clm/ssm: of one." in summary(judged)[0]
