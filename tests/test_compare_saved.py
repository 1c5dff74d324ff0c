"""A comparison as files: what is written is what is read, and what is wrong is said."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compared import BUDGET, compared
from llmtrain.compare.judge import judge
from llmtrain.compare.saved import ITEMS, NAME, Whose, gathered, read_comparison, write_comparison
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items, Measured

ONE = Measured(
    yardstick="y", kind="features", split="test", metric="accuracy", value=0.25, better="higher", n=4,
    items=Items(("a", "b", "c", "d"), ("f", "f", "g", "g"), np.array([0.0, 1.0, 0.0, 0.0])),
)  # fmt: skip
CLM = Whose(series="clm/dense", role="trained", seed=0, budget=BUDGET)


def test_a_comparison_comes_back_as_it_was(tmp_path: Path) -> None:
    comparison, items = compared()
    weighted = {key: one._replace(weight=np.arange(1.0, 241)) for key, one in list(items.items())[:3]}
    judged = judge(comparison, items)
    write_comparison(tmp_path, judged, items | weighted)
    read, read_items = read_comparison(tmp_path)
    assert read == judged
    assert read_items.keys() == items.keys()
    for key, one in (items | weighted).items():
        same = read_items[key]
        assert (same.id, same.group) == (one.id, one.group)
        np.testing.assert_array_equal(same.value, one.value)
        assert (same.weight is None) == (one.weight is None)
        if one.weight is not None:
            np.testing.assert_array_equal(same.weight, one.weight)


def test_what_was_read_is_judged_alike(tmp_path: Path) -> None:
    comparison, items = compared()
    write_comparison(tmp_path, comparison, items)
    assert judge(*read_comparison(tmp_path)) == judge(comparison, items)


def test_pandas_reads_both_files(tmp_path: Path) -> None:
    import pandas

    comparison, items = compared()
    write_comparison(tmp_path, comparison, items)
    rows = pandas.DataFrame(json.loads((tmp_path / NAME).read_text())["rows"])
    assert len(rows) == len(comparison.rows)
    frame = pandas.read_parquet(tmp_path / ITEMS)
    keys = ["series", "role", "seed", "yardstick", "metric"]
    means = frame[frame.role == "trained"].groupby(keys)["value"].mean()
    for row in comparison.rows:
        if row.key in items and row.role == "trained":
            key = (row.series, row.role, row.seed, row.yardstick, row.metric)
            assert means[key] == pytest.approx(row.value)


def test_a_number_is_given_once_and_is_the_mean_of_its_items() -> None:
    with pytest.raises(DataError, match="y/accuracy of clm/dense, seed 0, was given twice"):
        gathered([(CLM, ONE), (CLM, ONE)])
    with pytest.raises(DataError, match=r"is 0\.3, and the mean of its items is 0\.25"):
        gathered([(CLM, ONE._replace(value=0.3))])
    assert ONE.items is not None
    weighted = ONE.items._replace(weight=np.array([1.0, 3.0, 1.0, 1.0]))
    [row], _ = gathered([(CLM, ONE._replace(value=0.5, items=weighted))])
    assert row.value == 0.5


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no comparison; make one with scripts/compare\.py"):
        read_comparison(tmp_path)
    comparison, items = compared()
    write_comparison(tmp_path, comparison, items)
    path = tmp_path / NAME
    text = path.read_text()
    path.write_text(text.replace('"version": 1', '"version": 2', 1))
    with pytest.raises(DataError, match="is no comparison as this version writes it: version: ") as error:
        read_comparison(tmp_path)
    assert "\n" not in str(error.value)
    path.write_text(text)
    (tmp_path / ITEMS).unlink()
    with pytest.raises(DataError, match="the items cannot be read"):
        read_comparison(tmp_path)


def test_seeds_that_are_missing_are_judged_without(tmp_path: Path) -> None:
    """A cell that diverged leaves no number; the others stay."""
    comparison, items = compared()
    lost = [row for row in comparison.rows if not (row.series == "clm/moe" and row.seed == 2)]
    judged = judge(dataclasses.replace(comparison, rows=tuple(lost)), items)
    first = judged.results[0]
    seeds = {one.series: one.seeds for one in first.standings}
    assert seeds["clm/moe"] == 2
    assert first.spread.dof == judge(comparison, items).results[0].spread.dof - 1


def test_judging_needs_no_torch() -> None:
    """A fresh interpreter, since this one has it; matplotlib waits for figures, too."""
    code = (
        "import sys, llmtrain.compare.publish; bad = {'torch', 'lightning', 'matplotlib', 'wandb'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
