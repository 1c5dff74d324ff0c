"""A comparison from its words to comparison.json, on models of some thousand weights."""

import json
import sysconfig
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from llmtrain.compare.answer import answer
from llmtrain.compare.load import contest_from
from llmtrain.compare.question import planned, status
from llmtrain.compare.saved import ITEMS, NAME, read_comparison
from llmtrain.errors import DataError, NumbersError, StorageError
from llmtrain.record import RunRecord
from pools import Forked, Here
from runs import overrides, without_figures

pytestmark = pytest.mark.slow

SERIES = "{clm: [objective=clm], mlm: [objective=mlm]}"


def words(home: Path, name: str, **own: object) -> list[str]:
    common = [
        w for w in overrides(home, seq_len=64, batch_rows=2, eval__rows=8, eval__batch_rows=64, eval__samples=0)
        if not w.startswith(("steps=", "runs=", "size=", "model.d_model=", "trainer.log_every=", "data.source"))
    ]  # fmt: skip
    changes: dict[str, object] = {
        "name": name, "runs": home, "series": SERIES, "baseline": "clm", "common": "[]", "seeds": "[0,1]",
        "budgets": "[4e8]", "depth": 1, "size.d_model": 16, "size.within": 0.2, "rates.share": 0.2,
        "held_out.texts.share": 0.3, "report": "false", "features.corpus": "[name_role, text_kind]",
        "features.train_items": 80, "features.test_items": 40, "features.windows": 40, "features.probing.C": "[1.0]",
        "features.fine_tuning": "null", "generation.windows": 10, "generation.window_bytes": 64,
        "generation.pseudo_windows": 2, "generation.cloze_items": 4, "generation.cloze_candidates": 4,
        "generation.context_bytes": 16,
    }  # fmt: skip
    given = [f"comparison.{key}={value}" for key, value in (changes | own).items()]
    return ["comparison=quickstart", *given, *common, f"data.source.paths=[{home}/text]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "text").mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("[a-h]*.py")):
        (folder / "text" / path.name).write_bytes(path.read_bytes()[:16384])
    with without_figures():
        yield folder


def run(home: Path, name: str, **own: Any) -> tuple[Forked, Here]:
    contest, pool, executor = contest_from(words(home, name, **own)), Forked(), Here()
    answer(contest, planned(contest, startup=1.0), pool=pool, executor=executor)
    return pool, executor


@pytest.fixture(scope="module")
def done(home: Path) -> Path:
    run(home, "a")
    return home / "a"


def test_a_comparison_ends_with_numbers_of_all_that_were_trained_and_of_baselines(done: Path) -> None:
    comparison, items = read_comparison(done)
    about = comparison.about
    assert [cell.run for cell in about.cells] == [p.name for p in sorted(done.glob("cells/*"))]
    for cell in about.cells:
        record = RunRecord.read(done / "cells" / cell.run / "record.json")
        assert (record.steps, record.flops_model, record.lr) == (cell.steps, cell.flops_model, cell.lr)
        assert record.corpus_fingerprint == about.corpus_fingerprint
        assert cell.flops_model == pytest.approx(4e8, rel=0.01)
    trials = {t.series: len(t.losses) for t in about.tuning}
    assert trials.keys() == {"clm", "mlm"} and len(set(trials.values())) == 1
    who = {(row.role, row.series, row.seed) for row in comparison.rows}
    assert {(role, name, seed) for role, name, seed in who if role == "trained"} == {
        ("trained", name, seed) for name in ("clm", "mlm") for seed in (0, 1)
    }
    assert {("untrained", "clm", 0), ("untrained", "mlm", 0), ("baseline", "unigram", None)} <= who
    assert items and {key.role for key in items} == {"trained", "untrained", "baseline"}


def test_the_same_command_again_trains_and_measures_nothing_and_writes_the_same(done: Path) -> None:
    before = [(done / name).read_bytes() for name in (NAME, ITEMS)]
    pool, executor = run(done.parent, "a")
    assert (pool.ran, executor.n_done) == ([], 0)
    assert [(done / name).read_bytes() for name in (NAME, ITEMS)] == before


def test_a_model_that_is_measured_again_gives_the_same_numbers(done: Path) -> None:
    kept = sorted((done / "scores").glob("*.json"))
    before = {path.name: json.loads(path.read_text())["measured"] for path in kept}
    for path in kept:
        path.unlink()
    pool, executor = run(done.parent, "a")
    assert (pool.ran, executor.n_done) == ([], len(kept))
    assert {path.name: json.loads(path.read_text())["measured"] for path in kept} == before


def test_what_is_missing_is_trained_and_measured_and_nothing_else(done: Path) -> None:
    lost = sorted(done.glob("cells/*/record.json"))[1]
    before = json.loads(lost.read_text())
    lost.unlink()
    pool, executor = run(done.parent, "a")
    assert pool.ran == [lost.parent.name]
    assert executor.n_done <= 1  # its record names another wall time
    assert json.loads(lost.read_text())["score"] == before["score"]


def test_runs_of_two_corpora_are_not_compared(done: Path) -> None:
    path = sorted(done.glob("cells/*/record.json"))[1]
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"corpus_fingerprint": "other"}))
    try:
        with pytest.raises(DataError, match=f"{path.parent.name} have two corpora"):
            run(done.parent, "a")
    finally:
        path.write_text(before)


def test_a_process_that_is_killed_while_it_measures_ends_in_one_line(done: Path, monkeypatch: Any) -> None:
    lost = sorted((done / "scores").glob("*seed1.json"))[0]
    before = lost.read_text()
    lost.unlink()
    killed: Future[float] = Future()
    killed.set_exception(BrokenProcessPool())
    executor = Here()
    monkeypatch.setattr(executor, "submit", lambda *_: killed)
    contest = contest_from(words(done.parent, "a"))
    with pytest.raises(StorageError, match="the same command goes on"):
        answer(contest, planned(contest, startup=1.0), pool=Forked(), executor=executor)
    lost.write_text(before)


def test_another_file_of_labels_under_the_same_name_measures_every_model_anew(home: Path) -> None:
    file = home / "pairs.jsonl"
    own = {
        "generation.yardsticks": "[suffix,minimal_pairs]", "generation.minimal_pairs": file,
        "seeds": "[0]", "rates.rates": 1,
    }  # fmt: skip
    for bad, n in (("b a", 5), ("c a", 5), ("c a", 0)):
        file.write_text(json.dumps({"good": "a b", "bad": bad, "uid": "order"}) + "\n")
        _, executor = run(home, "pairs", **own)
        assert executor.n_done == n


def test_what_cannot_be_asked_is_refused_before_anything_is_trained(home: Path) -> None:
    with pytest.raises(DataError, match="no ending"):
        run(home, "early", **{"generation.cloze_candidates": 100_000})
    assert not list((home / "early").glob("*/*/metrics.jsonl"))


def test_how_far_each_run_is_is_told(done: Path) -> None:
    said = status(contest_from(words(done.parent, "a")))
    assert "4 cells: 4 finished" in said and "7 of 7 that can be measured now have scores" in said


def test_budgets_stand_side_by_side(home: Path) -> None:
    run(home, "two", budgets="[4e8,8e8]", seeds="[0]", **{"rates.rates": 1})
    comparison, _ = read_comparison(home / "two")
    assert comparison.about.budgets == (400_000_000, 800_000_000)
    rows = [row for row in comparison.rows if row.role == "trained"]
    assert {(row.series, row.budget) for row in rows} == {
        (name, budget) for name in ("clm", "mlm") for budget in comparison.about.budgets
    }


def test_a_run_that_diverged_is_listed_and_not_measured(home: Path) -> None:
    series = "{clm: [objective=clm], wild: [objective=clm,optim.weight_decay=1e30]}"
    run(home, "wild", series=series, seeds="[0]", **{"rates.rates": 1})
    comparison, _ = read_comparison(home / "wild")
    assert {cell.series: cell.status for cell in comparison.about.cells} == {
        "clm": "finished",
        "wild": "diverged",
    }
    assert {row.series for row in comparison.rows if row.role == "trained"} == {"clm"}


def test_where_all_diverged_nothing_is_measured(home: Path) -> None:
    with pytest.raises(NumbersError, match="every run diverged"):
        run(home, "lost", seeds="[0]", **{"rates.rates": 1, "rates.first": 1e30})
    assert not (home / "lost" / NAME).exists()
