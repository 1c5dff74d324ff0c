"""A sweep from its words to a verified prediction, on models of some thousand weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from llmtrain.callbacks.loggers.wandb import WandB
from llmtrain.errors import ConfigError, DataError
from llmtrain.record import RunRecord
from llmtrain.sweep import trials
from llmtrain.sweep.answer import fitted
from llmtrain.sweep.board import grouped, publish
from llmtrain.sweep.cells import Role
from llmtrain.sweep.kept import FILE
from llmtrain.sweep.load import sweep_from
from llmtrain.sweep.memory import bytes_at_peak
from llmtrain.sweep.plan import kept_plan
from llmtrain.sweep.progress import status
from llmtrain.sweep.question import planned, series_of
from runs import write_text
from sweeps import elsewhere, run, words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> Path:
    run(home, "a", report="true")
    return home / "a"


def test_a_sweep_ends_with_a_sealed_prediction_that_its_held_out_run_verifies(done: Path) -> None:
    plan = json.loads((done / FILE).read_text())
    records = {p.parent.name: RunRecord.read(p) for p in done.glob("cells/*/record.json")}
    assert records.keys() == {cell["id"] for cell in plan["cells"]} and len(records) >= 7
    for cell in plan["cells"]:
        record = records[cell["id"]]
        assert (record.steps, record.flops_model, record.raw_tokens) == (
            cell["steps"], cell["flops"], cell["tokens"],
        )  # fmt: skip
        assert (record.cell, record.series) == (cell["id"], "tiny")
    fit = json.loads((done / "fit" / "tiny" / "fit.json").read_text())
    assert set(fit["fitted"]) == set(records) and fit["form"] == "chinchilla"
    sealed = json.loads((done / "fit" / "tiny" / "prediction.json").read_text())
    verified = json.loads((done / "fit" / "tiny" / "verify.json").read_text())
    (held_out,) = verified["runs"]
    assert sealed["cells"] == [held_out["run"]] and verified["prediction"]["same_fit"]
    observed = RunRecord.read(done / Role.HELD_OUT.folder / held_out["run"] / "record.json")
    assert held_out["observed"] == observed.score.value and held_out["predicted"] == pytest.approx(
        sealed["loss"]
    )
    page = (done / "fit" / "tiny" / "report.html").read_text()
    assert held_out["run"] in page and "data:image/" in page
    sealed_at = (done / "fit" / "tiny" / "prediction.json").stat().st_mtime_ns
    assert sealed_at < min(p.stat().st_mtime_ns for p in done.glob("held_out/*/config.yaml"))


def test_the_same_command_again_runs_nothing_that_is_finished(done: Path) -> None:
    before = (done / "fit" / "tiny" / "fit.json").read_bytes()
    assert run(done.parent, "a").ran == []
    assert (done / "fit" / "tiny" / "fit.json").read_bytes() == before


def test_what_is_missing_is_run_and_nothing_else(done: Path) -> None:
    lost = sorted(done.glob("cells/*/record.json"))[2]
    text = json.loads(lost.read_text())
    lost.unlink()
    assert run(done.parent, "a").ran == [lost.parent.name]
    assert json.loads(lost.read_text())["score"] == text["score"]


def test_another_question_in_the_same_folder_is_refused_with_the_difference(done: Path) -> None:
    sweep = sweep_from(words(done.parent, "a", seeds="[1]"))
    with pytest.raises(ConfigError, match=r"seeds.*another name"):
        planned(sweep, startup=1.0)


def test_the_state_of_every_cell_is_told(done: Path) -> None:
    said = status(sweep_from(words(done.parent, "a")))
    cells = [p.parent for p in done.glob("*/*/record.json")]
    assert said.endswith(f"{len(cells)} cells: {len(cells)} finished")
    assert {line.split()[0] for line in said.splitlines()[1:-1]} == {cell.name for cell in cells}
    assert {cell.parent.name for cell in cells} == {"cells", "held_out"}


def test_learning_rates_are_tried_at_the_corners_and_cells_follow_the_rule(home: Path) -> None:
    own = {
        "tuning.rates": 3,
        "tuning.widen": 0,
        "tuning.corners": 2,
        "budgets": "[2e7]",
        "factors": "[0.5,1,2]",
    }
    with pytest.raises(DataError):  # three cells are too few for a fit
        run(home, "tuned", **own)
    tuning = json.loads((home / "tuned" / "tuning.json").read_text())
    tried = {p.parent.name: RunRecord.read(p) for p in (home / "tuned").glob("tunes/*/record.json")}
    assert sorted({r.lr for r in tried.values()}) == [0.005, 0.01, 0.02]
    rule = tuning["rules"]["tiny"]
    assert all(r.lr > 0 for r in map(RunRecord.read, (home / "tuned").glob("cells/*/record.json")))
    assert rule.keys() == {"constant", "by_n", "by_tokens"}
    said = status(sweep_from(words(home, "tuned", **own)))
    assert all(name in said for name in tried)
    assert " rule " not in said and said.endswith("1 held-out runs follow, once the law is fitted")
    shutil.rmtree(home / "tuned" / "tunes")  # what is tried next is known before it has begun
    assert status(sweep_from(words(home, "tuned", **own))).count(" tune ") == 3 * len(tuning["corners"])


def test_rates_of_the_smallest_size_serve_all_where_the_parametrisation_carries_them(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"tuning.rates": 3, "tuning.corners": 2, "budgets": "[2e7,6e7]"}
    for parametrisation, warned in (
        (["parametrization=mup", "parametrization.base_width=8"], False),
        ([], True),
    ):
        plan = planned(sweep_from([*words(home, f"two_{warned}", **own), *parametrisation]), startup=1.0)
        assert {cell.n for cell in plan.tuned} == {min(cell.n for cell in plan.cells)}
        assert ("set parametrization=mup parametrization.base_width=" in caplog.text) == warned


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sweep=isoflp", "did you mean isoflop"),
        ("sweep.budgts=[1]", r"did you mean sweep\.budgets"),
        ("sweep.tuning.rate=2", r"did you mean sweep\.tuning\.rates"),
        ("sweep.seeds=yes", "seeds"),
        ("sweep.seeds=[true]", "expected a number"),
        ("sweep.seeds=[]", "trains nothing"),
        ("sweep.seeds=[0,0]", "has one of them twice"),
        (
            "sweep.held_out={_target_: llmtrain.sweep.settings.HeldOut, flops: 1e9, seeds: []}",
            "trains nothing",
        ),
        ("sweep.series=null", "series: got null"),
        ("sweep.common=5", "common: got 5"),
        ("sweep.name=../up", "name of one folder"),
        ("sweep.series={a/b: []}", "name of one folder"),
        ("sweep.prior={_target_: llmtrain.run_folder.Path.touch, self: evil}", "there is no such class"),
        ("optim.rl=1", r"did you mean optim\.lr"),
        ("sweep.fit.form=chinchila", "chinchilla"),
        ("sweep.budgets=[]", "makes no cell"),
        ("sweep.factors=[1,1]", "has one of them twice"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_right_word(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        sweep_from(["sweep=isoflop", word])
    assert "\n" not in str(refusal.value)


HELD_OUT = "sweep.held_out={_target_: llmtrain.sweep.settings.HeldOut, flops: 1e9"


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("isoflop", ["sweep.fit.form=isoflop", f"{HELD_OUT}, n: 1e4}}"], "leave it null"),
        ("isoflop", ["sweep.fit.form=power", f"{HELD_OUT}}}"], "give held_out.n"),
        ("isoflop", ["sweep.fit.form=clark", f"{HELD_OUT}, n: 1e4}}"], "experts"),
        ("parametric", ["sweep.fit.form=isoflop", "sweep.held_out=null"], "runs of equal FLOPs"),
        ("ladder", ["sweep.fit.form=isoflop", "sweep.held_out=null"], "runs of equal FLOPs"),
        ("parametric", ["sweep.sizes=[]"], "makes no cell"),
        ("ladder", ["sweep.tokens_per_param=[5,5]"], "has one of them twice"),
    ],
)
def test_what_the_law_could_not_say_is_refused_before_anything_runs(
    kind: str, asked: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        sweep_from([f"sweep={kind}", *asked])
    assert "\n" not in str(refusal.value)


def test_the_middle_cell_settles_batch_and_noise_before_the_grid_is_run(home: Path) -> None:
    own = {
        "batch_test": "{_target_: llmtrain.sweep.settings.BatchTest, doublings: 1, seeds: [0]}",
        "noise": "{_target_: llmtrain.sweep.settings.Noise, seeds: [0, 1, 2]}",
        "prior.seed_sd": 9.0,  # any batch is good enough
    }
    ran = run(home, "settled", **own).ran
    folder = home / "settled"
    plan = kept_plan(sweep_from(words(home, "settled", **own)))
    assert plan is not None and plan.batch == 2
    assert json.loads((folder / "batch.json").read_text())["chosen"] == 2
    tried = {cell.batch_rows: cell for trial in plan.batches.values() for cell in trial}
    assert ran[:2] == [tried[2].id, tried[4].id] or ran[:2] == [tried[4].id, tried[2].id]
    records = {rows: RunRecord.read(cell.run(folder) / "record.json") for rows, cell in tried.items()}
    assert records[4].lr == pytest.approx(2**0.5 * records[2].lr)
    assert records[4].raw_tokens == pytest.approx(records[2].raw_tokens, rel=0.06)
    cells = [RunRecord.read(p) for p in folder.glob("cells/*/record.json")]
    assert {record.batch_rows for record in cells} == {4}
    assert all(record.lr == pytest.approx(records[4].lr) for record in cells)  # no rate is tuned here
    (held_out,) = (RunRecord.read(p) for p in folder.glob("held_out/*/record.json"))
    assert held_out.batch_rows == 4 and held_out.lr == pytest.approx(records[4].lr)
    noise = json.loads((folder / "noise.json").read_text())
    assert noise["dof"] == 2 and 0 < noise["seed_sd"] < 1
    assert run(home, "settled", **own).ran == []
    said = status(sweep_from(words(home, "settled", **own)))
    assert all(cell.id in said for cell in tried.values())


def test_a_batch_is_not_tried_that_leaves_too_few_steps(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"batch_test": "{_target_: llmtrain.sweep.settings.BatchTest}", "limits.least_steps": 6}
    plan = planned(sweep_from(words(home, "short", **own)), startup=1.0)
    assert not plan.batches and any(6 <= cell.steps < 12 for cell in plan.cells)
    assert "batch test: none" in capsys.readouterr().out


def test_one_precision_is_chosen_by_timing_where_the_machine_may_choose(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = [*words(home, "auto"), "trainer.precision=auto"]
    plan = planned(sweep_from(auto), startup=1.0)
    assert plan.precision_seconds.keys() == {"fp32", "bf16"} and min(plan.precision_seconds.values()) > 0
    (word,) = plan.settled["tiny"]
    assert word == f"trainer.precision={trials.faster(plan.precision_seconds)}"
    for cell in plan.cells:  # of two words the last one counts
        assert [w for w in cell.words if w.startswith("trainer.precision=")][-1] == word
    assert word in capsys.readouterr().out
    assert planned(sweep_from(words(home, "fixed")), startup=1.0).settled["tiny"] == ()


def test_the_memory_of_every_cell_is_that_of_a_step_of_it_without_data(home: Path) -> None:
    sweep = sweep_from(words(home, "fixed"))
    plan, series = planned(sweep, startup=1.0), series_of(sweep, {}, None)["tiny"]
    assert len({cell.d_model for cell in plan.cells}) > 3  # of three it was taken, the others follow
    for cell in plan.cells:
        assert cell.memory == pytest.approx(bytes_at_peak(series, cell), rel=0.05), cell.id


def test_wandb_gets_a_group_of_cells_and_a_run_with_table_law_and_figures(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sweep, plan = elsewhere(done, tmp_path)
    shutil.copytree(done, tmp_path / "a")
    studies = fitted(sweep, force=True).studies
    publish(sweep, plan, studies)
    assert not (tmp_path / "a" / "wandb").exists()  # the cells do not log there
    offline = WandB(mode="offline")
    assert grouped(sweep, offline) == ("logger.group=a",) and grouped(sweep, WandB(group="mine")) == ()
    first = dataclasses.replace(
        plan.cells[0], words=(*plan.cells[0].words, "logger=wandb", "logger.mode=offline")
    )
    publish(sweep, dataclasses.replace(plan, cells=(first, *plan.cells[1:])), studies)
    (logged,) = (tmp_path / "a" / "wandb").glob("offline-run-*/run-*.wandb")
    text = logged.read_bytes()
    assert b"tiny/alpha" in text and b"fit/tiny/envelope" in text
    (table,) = logged.parent.glob("files/media/table/*.json")
    assert len(json.loads(table.read_text())["data"]) == len(plan.cells) + 1
    assert len(list(logged.parent.glob("files/media/images/**/*.png"))) >= 3
