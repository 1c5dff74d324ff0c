"""Crashes, signals, disks and folders: whatever ends a run, the same command goes on, and nothing of it is lost."""

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints import DAMAGES
from llmtrain import cli, faults
from llmtrain.checkpoint import background
from llmtrain.compose import compose
from processes import Child, forked, read_until
from runs import metrics, overrides, weights, write_text

STEPS = 12
CHANGES: dict[str, Any] = {
    "seq_len": 64, "steps": STEPS, "checkpoint__every": 3, "eval__samples": 0, "eval__rows": 4, "eval__every": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that nothing happened to is called whole."""
    folder = tmp_path_factory.mktemp("storage")
    write_text(folder)
    compose(overrides(folder, **CHANGES))  # what forks need not compose again
    assert command(folder, "whole")[0] == 0
    return folder


@contextlib.contextmanager
def started(home: Path, name: str, fault: str = "", **changes: object) -> Iterator[Child]:
    words = overrides(home, name=name, **(CHANGES | changes))

    def run() -> int:
        os.environ[faults.VARIABLE] = fault
        background.PAUSE = 0.1
        return cli.main(words)

    with forked(run) as child:
        yield child


def command(home: Path, name: str, fault: str = "", **changes: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the real command in a process of its own."""
    with started(home, name, fault, **changes) as child:
        return child.ended()


def assert_whole(home: Path, name: str) -> None:
    assert metrics(home / "runs" / name) == metrics(home / "runs" / "whole")
    assert weights(home / "runs" / name, STEPS) == weights(home / "runs" / "whole", STEPS)


def the_error(err: str) -> str:
    """The one line in which a command says why it ended."""
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


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


# ---- disks


@pytest.mark.fault("F4")
@pytest.mark.parametrize("fault", ["enospc@save=2", "edquot@write=60", "efbig@write=70"])
def test_a_full_disk_stops_a_run_with_what_is_missing_and_leaves_the_older_checkpoint(
    home: Path, fault: str
) -> None:
    name = fault.replace("=", "-")
    code, _, err = command(home, name, fault)
    error = the_error(err)
    assert code == 5 and re.search(r"step-0000000\d: the checkpoint was not saved: ", error)
    assert re.search(r"it needs [\d.]+ kB, [\d.]+ .B are free", error)
    left = [path.name for path in (home / "runs" / name / "checkpoints").iterdir()]
    assert left and all(re.fullmatch(r"step-\d{8}", path) for path in left)
    assert command(home, name)[0] == 0
    assert_whole(home, name)


@pytest.mark.fault("F4", "F17")
def test_a_save_that_fails_while_the_run_fails_is_told_beside_the_first_reason(home: Path) -> None:
    """A slow save that meets a full disk, and meanwhile a step that is no number: the latter ended the run."""
    code, _, err = command(
        home, "both", "slow@write=1,seconds=2;enospc@write=3;nan@step=4", checkpoint__every=4
    )
    assert code == 4 and "step 5" in the_error(err)
    assert "the checkpoint was not saved" in err


@pytest.mark.fault("F4")
def test_a_run_may_go_on_without_a_checkpoint_but_not_end_without_its_last(home: Path) -> None:
    code, _, err = command(home, "continue", "enospc@save=2", checkpoint__on_disk_full="continue")
    assert code == 0 and err.count("training goes on without it") == 1
    assert_whole(home, "continue")
    code, _, err = command(
        home,
        "last",
        "enospc@save=*",
        checkpoint__on_disk_full="continue",
        checkpoint__every=6,
        eval__every="null",
    )
    assert code == 5 and "step-00000012: the checkpoint was not saved" in the_error(err)
    assert command(home, "last", eval__every=5)[0] == 0
    assert_whole(home, "last")


@pytest.mark.fault("F4", "F9")
def test_a_run_may_wait_for_room_with_its_state_in_memory_and_only_so_long(home: Path) -> None:
    code, _, err = command(home, "wait", "enospc@save=*,times=3", checkpoint__on_disk_full="wait")
    assert code == 0 and err.count("trying again in") == 3
    assert_whole(home, "wait")
    wait = {"checkpoint__on_disk_full": "wait", "checkpoint__wait_seconds": 0.5}
    code, _, err = command(home, "patience", "erofs@save=*", **wait)
    assert code == 5 and "Read-only file system" in the_error(err) and err.count("trying again in") == 3


@pytest.mark.fault("F4", "F5")
@pytest.mark.parametrize("policy", ["stop", "wait"])
def test_a_small_disk_that_fills_up_and_is_emptied_again(home: Path, tmp_path: Path, policy: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1536k tmpfs {small} 2> /dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        ballast, changes = small / "ballast", {"runs": small, "checkpoint__on_disk_full": policy}
        ballast.write_bytes(bytes(1_400_000))
        code, _, err = command(home, "small", **changes)
        assert code == 5 and "are free, and checkpoints need" in the_error(err)
        ballast.unlink()
        with started(home, "small", "slow@step=*,seconds=0.1", **changes) as child:
            read_until(child.out, "step 4/")
            with contextlib.suppress(OSError):
                ballast.write_bytes(bytes(2_000_000))
            if policy == "wait":
                read_until(child.err, "trying again in")
                ballast.unlink()
            code, _, err = child.ended()
        if policy == "stop":
            assert code == 5 and "No space left on device" in the_error(err)
            ballast.unlink()
            assert command(home, "small", **changes)[0] == 0
        assert code == (5 if policy == "stop" else 0)
        shutil.copytree(small / "small", home / "runs" / f"small-{policy}")
    finally:
        os.system(f"umount {small}")
    assert_whole(home, f"small-{policy}")


@pytest.mark.fault("F9")
@pytest.mark.parametrize("policy", ["stop", "wait"])
def test_a_folder_that_vanishes_is_missed_and_may_come_back(home: Path, policy: str) -> None:
    folder = home / "runs" / f"vanished-{policy}"
    away = folder.with_name("away")
    slow = "slow@step=*,seconds=0.1"
    with started(home, folder.name, slow, checkpoint__on_disk_full=policy) as child:
        read_until(child.out, "step 4/")
        folder.rename(away)
        if policy == "wait":
            read_until(child.err, "the folder is gone")
            away.rename(folder)
        code, _, err = child.ended()
    if policy == "stop":
        assert code == 5 and "the folder is gone" in the_error(err) and not folder.exists()
        away.rename(folder)
        assert command(home, folder.name)[0] == 0
    assert_whole(home, folder.name)


@pytest.mark.fault("F6", "F7")
@pytest.mark.parametrize("damage", ["truncated to half", "one bit flipped", "deleted"])
def test_a_damaged_checkpoint_is_named_set_aside_and_done_without(home: Path, damage: str) -> None:
    name = damage.replace(" ", "-")
    assert command(home, name, "kill@save=3")[0] == -signal.SIGKILL
    checkpoints = home / "runs" / name / "checkpoints"
    (checkpoints / "latest").write_text("step-00000006")
    DAMAGES[damage](checkpoints / "step-00000006" / "optimizer.safetensors")
    code, _, err = command(home, name)
    assert code == 0 and "continuing at step 3" in err
    assert re.search(
        r"step-00000006 is damaged \(optimizer.safetensors .*\): set aside as step-00000006.corrupt", err
    )
    assert (checkpoints / "step-00000006.corrupt").is_dir()
    assert_whole(home, name)


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
