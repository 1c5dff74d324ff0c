"""What a sweep does where a part of it failed: the rest is kept, and all of it is said."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from llmtrain.errors import ConfigError, NumbersError
from llmtrain.scaling import Method, read_fit, study
from llmtrain.sweep.answer import fitted, prediction_of
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.conduct import Conductor
from llmtrain.sweep.edges import check_edges
from llmtrain.sweep.load import sweep_from
from llmtrain.sweep.plan import Plan, make_plan
from llmtrain.sweep.question import answer, planned, series_of, with_trunks
from llmtrain.sweep.runner import CellsFailed
from llmtrain.sweep.settings import Sweep
from planted import points
from pools import Forked
from runs import write_text
from sweeps import Diverging, Ending, elsewhere, run, words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> Path:
    run(home, "a")
    return home / "a"


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> tuple[Sweep, Plan]:
    """A finished sweep that a test may change, and its plan."""
    shutil.copytree(done, tmp_path / "a")
    return elsewhere(done, tmp_path)


def held_out(sweep: Sweep, **changes: object) -> Sweep:
    assert sweep.held_out is not None
    return dataclasses.replace(sweep, held_out=dataclasses.replace(sweep.held_out, **changes))


@pytest.mark.parametrize(("code", "exit_code"), [(143, 75), (-9, 75), (5, 5)])
def test_no_law_is_fitted_without_a_cell_that_was_stopped_or_failed(
    done: Path, tmp_path: Path, code: int, exit_code: int
) -> None:
    sweep, plan = elsewhere(done, tmp_path)
    shutil.copytree(done / "cells", tmp_path / "a" / "cells")
    shutil.rmtree(next((tmp_path / "a" / "cells").iterdir()))
    with pytest.raises(CellsFailed, match="the same command tries again") as failure:
        answer(sweep, plan, force=True, pool=Ending(code))
    assert failure.value.exit_code == exit_code
    assert not (tmp_path / "a" / "fit").exists()


def test_a_sealed_prediction_is_of_the_law_that_the_records_make(done: Path, tmp_path: Path) -> None:
    sweep, plan = elsewhere(done, tmp_path)
    shutil.copytree(done, tmp_path / "a")
    sealed = tmp_path / "a" / "fit" / "tiny" / "prediction.json"
    sealed.write_text(json.dumps(json.loads(sealed.read_text()) | {"loss": 1.0}))
    with pytest.raises(ConfigError, match=r"predicts 1\.0000 .* another name"):
        answer(sweep, plan, force=True, pool=Forked())


def test_a_held_out_run_without_a_result_leaves_the_prediction_open_and_the_report_is_written(
    copy: tuple[Sweep, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, plan = copy
    fit = sweep.folder / "fit" / "tiny"
    (fit / "prediction.json").unlink()
    two = dataclasses.replace(held_out(sweep, seeds=(0, 1)), report=True)
    with pytest.raises(NumbersError, match=r"1 of 2 held-out runs have no result.*seed1 \(diverged\)"):
        answer(two, plan, force=True, pool=Diverging())
    said = capsys.readouterr().out
    assert "seed1: no result (diverged)" in said and "the prediction is open" in said
    verified = json.loads((fit / "verify.json").read_text())
    assert len(verified["runs"]) == len(verified["without_result"]) == 1 and verified["held"] is False
    assert (fit / "report.html").exists()


def test_without_any_result_nothing_is_verified(copy: tuple[Sweep, Plan]) -> None:
    sweep, plan = copy
    shutil.rmtree(sweep.folder / Role.HELD_OUT.folder)
    with pytest.raises(NumbersError, match="1 of 1 held-out runs have no result"):
        answer(dataclasses.replace(sweep, report=True), plan, force=True, pool=Diverging())
    assert not (sweep.folder / "fit" / "tiny" / "verify.json").exists()
    assert (sweep.folder / "fit" / "tiny" / "report.html").exists()


def test_a_held_out_run_that_failed_is_tried_again(copy: tuple[Sweep, Plan]) -> None:
    sweep, plan = copy
    shutil.rmtree(sweep.folder / Role.HELD_OUT.folder)
    with pytest.raises(CellsFailed, match="the same command tries again") as failure:
        answer(sweep, plan, force=True, pool=Ending(5))
    assert failure.value.exit_code == 5
    answer(sweep, plan, force=True, pool=Forked())
    assert json.loads((sweep.folder / "fit" / "tiny" / "verify.json").read_text())["without_result"] == {}


def test_a_series_without_a_finished_cell_takes_no_other_with_it(copy: tuple[Sweep, Plan]) -> None:
    sweep, _ = copy
    both = dataclasses.replace(sweep, series=sweep.series | {"lost": ()})
    found = fitted(both, force=True)
    assert found.folders.keys() == {"tiny"}
    assert str(found.failed["lost"]) == "series lost: none of its cells finished, so it has no law"


def test_where_every_rate_diverges_the_corner_is_named(home: Path, tmp_path: Path) -> None:
    sweep = sweep_from(words(home, "wild", **{"tuning.rates": 2, "tuning.widen": 1, "budgets": "[2e7]"}))
    sweep = dataclasses.replace(sweep, runs=tmp_path)
    plan = make_plan(sweep, series_of(sweep, {}, None), workers=1, startup=None)
    with pytest.raises(NumbersError, match=r"diverged \(0.0025, 0.005, 0.01\).*sweep\.tuning\.first"):
        Conductor(sweep, Diverging()).tuned(plan)


def test_rates_on_an_edge_end_the_sweep_before_its_cells_and_further_ones_may_be_tried(home: Path) -> None:
    own = {
        "tuning.rates": 2,
        "tuning.widen": 0,
        "tuning.corners": 2,
        "budgets": "[2e7]",
    }  # the best is an end
    sweep = sweep_from(words(home, "edge", **own))
    with pytest.raises(ConfigError, match=r"larger sweep\.tuning\.widen.*--force"):
        answer(sweep, planned(sweep, startup=1.0), force=False, pool=Forked())
    assert list((home / "edge" / "tunes").iterdir()) and not (home / "edge" / "cells").exists()
    with pytest.raises(ConfigError, match="larger"):
        check_edges(home / "edge" / "cells", force=False)
    check_edges(home / "edge", force=True)
    wider = sweep_from(words(home, "edge", **own | {"tuning.widen": 1}))
    conductor, plan = Conductor(wider, Forked()), planned(wider, startup=1.0)
    before = json.loads((home / "edge" / "tuning.json").read_text())["corners"]
    conductor.tuned(plan)
    after = json.loads((home / "edge" / "tuning.json").read_text())["corners"]
    assert all(len(after[name]["tried"]) == 3 and len(before[name]["tried"]) == 2 for name in after)
    (home / "edge" / "cells" / plan.cells[0].id).mkdir(parents=True)  # begun by that rule
    widest = Conductor(sweep_from(words(home, "edge", **own | {"tuning.widen": 9})), Forked())
    if any(not corner["inside"] for corner in after.values()):
        with pytest.raises(ConfigError, match="begun by the one before"):
            widest.tuned(plan)


def test_the_rates_of_a_comparison_are_no_edges(tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text('{"trials": []}')
    check_edges(tmp_path, force=False)


def test_a_law_of_compute_alone_is_asked_by_compute(copy: tuple[Sweep, Plan]) -> None:
    sweep, plan = copy
    shutil.rmtree(sweep.folder / "fit")
    of_power = dataclasses.replace(held_out(sweep, n=8e3), fit=Method(form="power", bootstrap=0))
    answer(of_power, plan, force=True, pool=Forked())
    folder = sweep.folder / "fit" / "tiny"
    sealed, verified = (json.loads((folder / f"{n}.json").read_text()) for n in ("prediction", "verify"))
    assert sealed["n"] is None and sealed["loss"] == pytest.approx(verified["runs"][0]["predicted"])


def test_a_law_of_optima_is_asked_by_compute(tmp_path: Path) -> None:
    study([points("chinchilla")], Method(form="isoflop", bootstrap=0)).write(tmp_path)
    cell = Cell(
        id="h", role=Role.HELD_OUT, series="s", seed=0, n=10**9, d_model=8, tokens=10**10, flops=10**22,
        steps=10, batch_rows=1, epochs=0.1, words=(),
    )  # fmt: skip
    found = prediction_of(read_fit(tmp_path), cell)
    assert found.flops == 1e22 and found.n is not None and found.bands.loss[0] > 0


def test_branches_of_a_trunk_that_diverged_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cell(name: str, origin: str | None) -> Cell:
        return Cell(
            id=name, role=Role.BRANCH if origin else Role.CHECK, series="s", seed=0, n=100, d_model=8, tokens=10,
            flops=10, steps=10, batch_rows=1, epochs=0.1, words=(), origin=origin,
        )  # fmt: skip

    (tmp_path / "trunks" / "t" / "checkpoints" / "step-00000004").mkdir(parents=True)
    early, late, alone = cell("early", "t@4"), cell("late", "t@8"), cell("alone", None)
    assert with_trunks([early, late, alone], tmp_path) == [early, alone]
    assert capsys.readouterr().out == "late: not trained, since its trunk diverged before step 8\n"
