"""Crashes, signals and second starts: whatever ends a run, the same command goes on, and nothing of it is lost."""

import re
import signal
import time
from pathlib import Path

import pytest

from llmtrain import faults
from llmtrain.compose import compose
from processes import read_until
from runs import metrics, overrides, write_text
from struck import CHANGES, STEPS, assert_whole, command, started, the_error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that nothing happened to is called whole."""
    folder = tmp_path_factory.mktemp("storage")
    write_text(folder)
    compose(overrides(folder, **CHANGES))  # what forks need not compose again
    assert command(folder, "whole")[0] == 0
    return folder


# ---- crashes


@pytest.mark.slow
@pytest.mark.fault("F1", "F2", "F8")
def test_kills_in_steps_writes_and_deletions_lose_nothing_wherever_temporary_files_go(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/dev/shm").is_dir():
        monkeypatch.setenv("TMPDIR", "/dev/shm")
    kills = [
        "step=2", "write=1", "write=9", "write=27", "write=40", "write=46", "write=47", "step=7", "eval=1", "save=2",
        "delete=1", "delete=2", "end=1",
    ]  # fmt: skip
    fault = ";".join(f"kill@{kill}" for kill in kills)
    for _ in range(len(kills) + 1):
        code, _, err = command(home, "killed", fault, checkpoint__keep_last=1)
        assert code in {0, -signal.SIGKILL} and "corrupt" not in err and "Traceback" not in err, err
        if code == 0:
            break
    struck = (home / "runs" / "killed" / faults.MARKER).read_text().splitlines()
    # saving goes on beside training, so that of two places in one start either may come first and make the other moot
    assert code == 0 and len(struck) >= 8
    assert_whole(home, "killed")
    assert [path.name for path in (home / "runs" / "killed" / "checkpoints").iterdir()] == [
        f"step-{STEPS:08d}"
    ]


@pytest.mark.fault("F1", "F36")
def test_a_kill_between_the_last_step_and_the_record_leaves_out_no_row_and_repeats_none(home: Path) -> None:
    # once before the last score, when the last step is on the disk, and once after it
    fault = "slow@eval=3,seconds=1;kill@eval=3;kill@end=1"
    assert command(home, "late", fault)[0] == -signal.SIGKILL
    code, _, err = command(home, "late", fault)
    assert code == -signal.SIGKILL and "continuing at step 12" in err
    assert command(home, "late", fault)[0] == 0
    assert_whole(home, "late")


# ---- signals


@pytest.mark.slow
@pytest.mark.fault("F3")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("term@step=0", 143),
        ("int@eval=1", 130),
        ("usr1@save=1", 143),
        ("term@write=5", 143),
        ("int@delete=1", 130),
    ],
)
def test_a_signal_in_the_first_step_an_evaluation_or_a_save_is_heeded_after_the_step(
    home: Path, fault: str, code: int
) -> None:
    name = fault.replace("=", "-")
    ended, _, err = command(home, name, fault, checkpoint__keep_last=1)
    stopped = re.findall(
        r"^stopped at step (\d+) of 12, saved in .*: the same command continues$", err, re.MULTILINE
    )
    assert ended == code and len(stopped) == 1, err
    assert (
        int(stopped[0]) < STEPS
        and (home / "runs" / name / "checkpoints" / f"step-{int(stopped[0]):08d}").is_dir()
    )
    assert command(home, name)[0] == 0
    assert_whole(home, name)


@pytest.mark.slow
@pytest.mark.fault("F3")
def test_a_second_signal_ends_training_at_once(home: Path) -> None:
    code, _, err = command(home, "twice", "term@step=4;int@step=4")
    assert code == 130 and "saved" not in err
    assert not (home / "runs" / "twice" / "checkpoints" / "step-00000004").exists()
    assert command(home, "twice")[0] == 0
    assert_whole(home, "twice")


# ---- folders


@pytest.mark.fault("F10", "F40")
def test_of_two_starts_in_one_second_one_trains_and_the_other_is_told_who_does(home: Path) -> None:
    slow = "slow@step=*,seconds=0.2"
    with started(home, "both", slow) as one, started(home, "both", slow) as two:
        (code, _, err), (other, _, other_err) = one.ended(), two.ended()
    pid = one.pid
    if code:
        (code, err), (other, other_err), pid = (other, other_err), (code, err), two.pid
    assert (code, other) == (0, 5), (err, other_err)
    assert f"both is in use by process {pid} on " in the_error(other_err)
    assert_whole(home, "both")


@pytest.mark.slow
@pytest.mark.fault("F10")
def test_the_lock_of_a_killed_run_is_taken_over_and_that_of_a_living_one_by_force(home: Path) -> None:
    with started(home, "forced", "slow@step=*,seconds=0.2") as first:
        read_until(first.out, "step 4/")
        code, _, err = command(home, "forced")
        assert code == 5 and "force=true" in the_error(err)
        first.signal(signal.SIGSTOP)  # a machine that is gone, whose lock a file system keeps
        code, _, err = command(home, "forced", force="true")
        assert code == 0 and f"is in use by process {first.pid} " in err and "by force=true" in err
        first.signal(signal.SIGKILL)
    assert_whole(home, "forced")
    assert command(home, "dead", "kill@step=4")[0] == -signal.SIGKILL
    code, _, err = command(home, "dead")
    assert code == 0 and "did not end cleanly: taken over" in err


@pytest.mark.fault("F11")
def test_another_config_is_refused_key_by_key_unless_the_keys_are_allowed(home: Path) -> None:
    assert command(home, "drift", "kill@save=3")[0] == -signal.SIGKILL
    changed = {"optim__lr": 0.5, "model__d_model": 24, "data__isolate_documents": "false", "seed": 7}
    code, _, err = command(home, "drift", **changed)
    error = the_error(err)
    assert code == 2
    for key, value in changed.items():
        assert re.search(rf"{key.replace('__', '.')}: \S+ there, {value} now", error), key
    code, _, err = command(home, "drift", optim__lr=0.5, allow_changes="[optm.lr]")
    assert code == 2 and "did you mean optim.lr" in the_error(err)
    code, _, err = command(home, "drift", optim__lr=0.5, seed=7, allow_changes="[optim]")
    assert code == 2 and "optim.lr" not in the_error(err) and "seed: 0 there, 7 now" in the_error(err)
    code, _, err = command(home, "drift", optim__lr=0.5, allow_changes="[optim]")
    assert code == 0 and "optim.lr: 0.003 before, 0.5 now, as allow_changes allows" in err
    (line,) = (home / "runs" / "drift" / "changes.jsonl").read_text().splitlines()
    assert line == '{"step": 6, "key": "optim.lr", "before": 0.003, "now": 0.5}'
    rows, whole = metrics(home / "runs" / "drift"), metrics(home / "runs" / "whole")
    assert rows[:7] == whole[:7] and rows[-1] != whole[-1]


@pytest.mark.fault("F40")
def test_no_clock_decides_what_a_run_is_called(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = overrides(home, **CHANGES)
    from llmtrain.compose import run_from

    now = run_from(words).folder
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert run_from(words).folder == now
    assert run_from([*words, "seed=1"]).folder != now
