"""A run goes back before rows that spoil it, and is then the one that never had them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.checkpoint import find, load, save
from llmtrain.config import config
from llmtrain.errors import NumbersError
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from llmtrain.run import Run
from poison import BAD, ROWS, STEPS, anomalies, assert_all_checkpoints_finite, done, poisoned
from runs import metrics, stopped, weights, write_text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def clean(home: Path) -> RunRecord:
    return done(poisoned(home, (), name="clean"))


@pytest.fixture(scope="module")
def back(home: Path) -> Run:
    """A run that went back from step 7 to step 5, and on to its end."""
    run = poisoned(home, name="back", guard__on_nonfinite="rollback")
    done(run)
    return run


@pytest.mark.fault("F19")
def test_a_rollback_past_poisoned_rows_ends_near_the_clean_run(
    home: Path, clean: RunRecord, back: Run
) -> None:
    record = RunRecord.read(back.folder / "record.json")
    assert (record.steps, record.skipped_steps, record.rollbacks) == (STEPS, 0, 1)
    assert record.score.value == pytest.approx(clean.score.value, rel=0.02)
    assert (record.raw_tokens, record.flops_model) == (clean.raw_tokens, clean.flops_model)
    assert [row["step"] for row in metrics(back.folder) if "loss" in row] == list(range(1, STEPS + 1))
    (row,) = anomalies(back)
    assert row == row | {"step": BAD, "action": "rollback", "rows": [[24, 28]], "back_to": 5}
    values = load(find(back.folder)).values  # type: ignore[arg-type]
    assert (values["rows"], values["passed"]) == (STEPS * ROWS, [[24, 28]])
    assert_all_checkpoints_finite(back)


@pytest.mark.fault("F19")
def test_after_a_rollback_a_run_is_the_one_that_never_had_those_rows(home: Path, back: Run) -> None:
    """The ranges in a checkpoint are all that it takes: put into a clean run's by hand, they lead to the same bits."""
    never = poisoned(home, (), name="never")
    stopped(never, 5)
    path = find(never.folder)
    assert path is not None
    state = load(path)
    shutil.rmtree(path)
    state.values["passed"] = [[24, 28]]
    save(never.folder, 5, state)
    done(never)
    assert weights(never.folder, STEPS) == weights(back.folder, STEPS)
    assert metrics(never.folder) == metrics(back.folder)


@pytest.mark.fault("F12", "F19")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("lost", [False, True], ids=["saved after it", "saved before it alone"])
def test_a_run_that_is_stopped_after_a_rollback_goes_on_bit_for_bit(
    home: Path, back: Run, workers: int, lost: bool
) -> None:
    name = f"back-{workers}-{lost}"
    run = poisoned(home, name=name, guard__on_nonfinite="rollback", data__loader_workers=workers)
    assert stopped(run, 9) == 143
    if lost:
        shutil.rmtree(run.folder / "checkpoints" / "step-00000009")
    record = done(run)
    assert metrics(run.folder) == metrics(back.folder)
    assert weights(run.folder, STEPS) == weights(back.folder, STEPS)
    assert anomalies(run) == anomalies(back)
    assert record.rollbacks == 1


@pytest.mark.fault("F17", "F19")
def test_a_run_that_the_guard_ended_goes_on_under_another_one(home: Path, back: Run) -> None:
    with pytest.raises(NumbersError):
        train(poisoned(home, name="mended"))
    run = poisoned(home, name="mended", guard__on_nonfinite="rollback")
    done(run)
    assert anomalies(run) == anomalies(back)
    assert weights(run.folder, STEPS) == weights(back.folder, STEPS)


@pytest.mark.fault("F19")
def test_a_rollback_before_the_first_checkpoint_begins_again(home: Path, back: Run) -> None:
    run = poisoned(home, (2, 9), name="again", guard__on_nonfinite="rollback", checkpoint__every=1000)
    record = done(run)
    assert (record.rollbacks, [row["back_to"] for row in anomalies(run)]) == (2, [0, 0])
    assert load(find(run.folder)).values["passed"] == [[0, 4], [8, 12]]  # type: ignore[arg-type]


@pytest.mark.fault("F19")
def test_rollbacks_are_bounded_and_no_run_loops(home: Path) -> None:
    run = poisoned(
        home, tuple(range(24, 400)), name="loops", guard__on_nonfinite="rollback", guard__max_rollbacks=2
    )
    with pytest.raises(NumbersError, match=r"2 rollbacks did not help \(guard\.max_rollbacks\)") as error:
        train(run)
    assert error.value.exit_code == 4
    assert [(row["action"], row["rows"]) for row in anomalies(run)] == [
        ("rollback", [[24, 28]]),
        ("rollback", [[28, 32]]),
        ("stop", [[32, 36]]),
    ]
    assert_all_checkpoints_finite(run)


@pytest.mark.fault("F19")
def test_a_margin_takes_the_rows_around_the_bad_step_too_but_none_that_were_trained_on(home: Path) -> None:
    run = poisoned(home, name="margin", guard__on_nonfinite="rollback", guard__margin=2)
    done(run)
    assert anomalies(run)[0]["back_to"] == 5
    assert load(find(run.folder)).values["passed"] == [[20, 36]]  # type: ignore[arg-type]


@config
class Damages(Logger):
    """Spoils the checkpoint of a step, once another step is done."""

    folder: Path
    spoilt: int
    at: int

    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        return [_Damages(self)]


class _Damages(Sink):
    def __init__(self, cfg: Damages):
        self.cfg = cfg

    def log(self, row: dict[str, Any]) -> None:
        path = self.cfg.folder / "checkpoints" / f"step-{self.cfg.spoilt:08d}" / "model.safetensors"
        if row["step"] == self.cfg.at and path.exists():
            path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.fault("F6", "F19")
def test_a_rollback_takes_the_newest_checkpoint_that_is_whole_though_it_is_older_than_this_start(
    home: Path,
) -> None:
    changes = {"guard__on_nonfinite": "rollback", "checkpoint__every": 3}
    run = poisoned(home, (4 * 8 - 2,), name="damaged", **changes)
    assert stopped(run, 6) == 143
    damages = Damages(folder=run.folder, spoilt=6, at=7)
    assert done(dataclasses.replace(run, logger=damages)).steps == STEPS
    assert anomalies(run)[0]["back_to"] == 3
    assert (run.folder / "checkpoints" / "step-00000006.corrupt").exists()
    whole = poisoned(home, (4 * 8 - 2,), name="undamaged", **changes)
    done(whole)
    assert metrics(run.folder) == metrics(whole.folder)
    assert weights(run.folder, STEPS) == weights(whole.folder, STEPS)
