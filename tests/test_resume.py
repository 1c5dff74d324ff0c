"""A run that was stopped and continued is the run that was not: every number, every bit of every weight."""

import signal
from pathlib import Path
from typing import Any

import pytest

from llmtrain.compose import run_from
from llmtrain.pretrain import train
from runs import metrics, overrides, stopped, tiny, weights, write_text

CHANGES: dict[str, Any] = {"eval__every": 5, "optim__ema": 0.9}
STEPS = 12  # of 4 rows; an epoch ends inside the 9th


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    write_text(folder)
    train(tiny(folder, name="whole", **CHANGES))
    return folder


@pytest.mark.parametrize(
    ("stops", "workers", "micro_rows"),
    [
        pytest.param([1], 0, None, id="after the first step"),
        pytest.param([5], 0, None, id="at an evaluation"),
        pytest.param([9], 0, None, id="past the end of an epoch"),
        pytest.param([3, 4, 11], 0, None, id="three times"),
        pytest.param([6], 2, None, id="with two workers"),
        pytest.param([6], 1, 2, id="with one worker and accumulation"),
    ],
)
@pytest.mark.fault("F12", "F14", "F15")
def test_a_run_in_pieces_is_the_whole_run_bit_for_bit(
    whole: Path, stops: list[int], workers: int, micro_rows: int | None
) -> None:
    name = f"pieces-{'-'.join(map(str, stops))}-{workers}-{micro_rows}"
    changes = CHANGES | {"name": name, "data__loader_workers": workers}
    reference = "whole"
    if micro_rows:  # accumulation rounds otherwise, so it has a whole run of its own
        changes["micro_rows"], reference = micro_rows, "accumulated"
        train(tiny(whole, **(changes | {"name": reference})))
    run = tiny(whole, **changes)
    for step in stops:
        assert stopped(run, step) == 143
    record = train(run)
    assert record is not None
    assert record.steps == STEPS
    assert metrics(run.folder) == metrics(whole / "runs" / reference)
    assert weights(run.folder, STEPS) == weights(whole / "runs" / reference, STEPS)


@pytest.mark.fault("F8")
def test_old_checkpoints_that_a_kill_left_beside_the_last_are_deleted_by_the_next_start(whole: Path) -> None:
    run = tiny(whole, name="full", checkpoint__every=4, checkpoint__keep_last=3, **CHANGES)
    train(run)
    checkpoints = run.folder / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 3
    (run.folder / "record.json").unlink()  # killed after the last save, before anything else
    train(tiny(whole, name="full", checkpoint__every=4, checkpoint__keep_last=1, **CHANGES))
    assert [path.name for path in checkpoints.iterdir()] == [f"step-{STEPS:08d}"]


@pytest.mark.fault("F1", "F12")
def test_a_kill_between_checkpoints_loses_nothing_but_time(whole: Path) -> None:
    """What kill -9 leaves is an older checkpoint and metrics beyond it."""
    run = tiny(whole, name="killed", checkpoint__every=4, **CHANGES)
    assert stopped(run, 7) == 143
    newest = run.folder / "checkpoints" / "step-00000007"
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train(run)
    assert metrics(run.folder) == metrics(whole / "runs" / "whole")
    assert weights(run.folder, STEPS) == weights(whole / "runs" / "whole", STEPS)


def test_logged_averages_go_on_across_a_stop(whole: Path) -> None:
    """Rows every 5 steps, stopped at 7: the row at 10 is the mean over 6 to 10 all the same."""
    train(tiny(whole, name="fives", trainer__log_every=5))
    run = tiny(whole, name="fives-stopped", trainer__log_every=5, checkpoint__every=7)
    train(run)
    for step in (12,):
        folder = run.folder / "checkpoints" / f"step-{step:08d}"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    (run.folder / "record.json").unlink()
    train(run)
    assert metrics(run.folder) == metrics(whole / "runs" / "fives")


@pytest.mark.fault("F3")
def test_a_keyboard_interrupt_exits_with_130(whole: Path) -> None:
    assert stopped(tiny(whole, name="interrupted"), 2, signal.SIGINT) == 130


def test_a_longer_length_goes_on_from_where_the_shorter_was_stopped(whole: Path) -> None:
    run = tiny(whole, name="longer")
    stopped(run, 3)
    record = train(tiny(whole, name="longer", steps=14))
    assert record is not None and record.steps == record.horizon_steps == 14


def test_a_branch_takes_weights_optimiser_and_cursor_of_its_trunk(whole: Path) -> None:
    """A branch with the trunk's own schedule and length is the trunk."""
    train(tiny(whole, name="trunk", checkpoint__every=6, checkpoint__keep_last=5, optim__ema=0.9))
    record = train(tiny(whole, name="branch", init_from="trunk@6", optim__ema=0.9))
    assert record is not None
    assert (record.parent, record.branch_step, record.steps) == ("trunk@6", 6, STEPS)
    assert weights(whole / "runs" / "branch", STEPS) == weights(whole / "runs" / "trunk", STEPS)
    fresh = train(tiny(whole, name="fresh", init_from="trunk", init_state="weights", steps=2))
    assert fresh is not None
    assert (fresh.steps, fresh.raw_tokens) == (2, 2 * 4 * 512)


@pytest.mark.fault("F16")
def test_the_same_seed_is_the_same_run_and_another_is_not(whole: Path) -> None:
    train(run_from(overrides(whole, name="again", **CHANGES)))
    train(run_from(overrides(whole, name="other", seed=1, **CHANGES)))
    assert metrics(whole / "runs" / "again") == metrics(whole / "runs" / "whole")
    assert metrics(whole / "runs" / "other")[0]["loss"] != metrics(whole / "runs" / "whole")[0]["loss"]
