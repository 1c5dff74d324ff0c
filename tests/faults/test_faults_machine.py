"""Machines that are short of memory, files or time are named in one line, and what a run is does not change."""

import logging
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmtrain import cli, faults
from llmtrain.errors import UserError
from llmtrain.pretrain import train
from namespaces import CLONE_NEWNS, permitted, unshare
from processes import forked
from runs import metrics, overrides, tiny, weights, write_text
from undisturbed import SMALL, assert_whole


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text that is prepared, and a run that nothing disturbed, as ``whole``."""
    folder = tmp_path_factory.mktemp("services")
    write_text(folder)
    train(tiny(folder, name="whole", **SMALL))
    return folder


# ---- memory


@pytest.fixture
def faulty() -> Iterator[Callable[[str], None]]:
    """What breaks the commands of this test, as LLMTRAIN_FAULT does."""
    yield faults.arm
    faults.arm("")


@pytest.mark.fault("F38")
@pytest.mark.parametrize(("step", "code"), [(0, 2), (2, 75)])
def test_the_end_of_memory_is_one_line_with_an_estimate_and_three_keys(
    home: Path,
    step: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMTRAIN_FAULT", f"oom@step={step}")
    assert cli.main(overrides(home, name=f"full-{step}", **SMALL)) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"out of memory at step {step + 1}" in line
    assert "take about 0.1 MB, the activations of 4 rows x 64 positions about 0.3 MB" in line
    assert "Set micro_rows=2 or trainer.activation_checkpointing=block or trainer.precision=bf16;" in line


@pytest.mark.slow
@pytest.mark.fault("F38")
def test_fewer_rows_at_a_time_are_the_same_run_in_the_same_order(
    home: Path, faulty: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny(home, name="ones", micro_rows=1, **SMALL))
    faulty("oom@step=0,times=2")
    with caplog.at_level(logging.WARNING):
        record = train(tiny(home, name="auto", micro_rows="auto", **SMALL))
    assert record is not None and record.steps == 4
    assert [text in caplog.text for text in ("micro_rows=4 is", "micro_rows=2 is", "micro_rows=1 is")] == [
        True, True, False,
    ]  # fmt: skip
    assert metrics(home / "runs" / "auto") == metrics(home / "runs" / "ones")
    assert weights(home / "runs" / "auto", 4) == weights(home / "runs" / "ones", 4)
    for ours, whole in zip(metrics(home / "runs" / "auto"), metrics(home / "runs" / "whole"), strict=True):
        assert ours == pytest.approx(whole, rel=1e-5)


@pytest.mark.fault("F38")
def test_memory_that_ends_later_goes_on_from_the_newest_checkpoint(
    home: Path, faulty: Callable[[str], None]
) -> None:
    faulty("oom@step=3")
    train(tiny(home, name="later", micro_rows="auto", checkpoint__every=2, **SMALL))
    found, whole = metrics(home / "runs" / "later"), metrics(home / "runs" / "whole")
    assert [row["step"] for row in found] == [row["step"] for row in whole]
    assert found[:2] == whole[:2]
    for ours, theirs in zip(found, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.fault("F38")
def test_what_cannot_be_taken_apart_says_so(home: Path, faulty: Callable[[str], None]) -> None:
    faulty("oom@step=0,times=9")
    with pytest.raises(UserError, match="out of memory at step 1") as end:
        train(tiny(home, name="one", micro_rows="auto", **SMALL))
    assert "micro_rows=" not in str(end.value)  # there are none fewer than one
    with pytest.raises(UserError, match="micro_rows=auto is for one process"):
        train(tiny(home, name="ranks", micro_rows="auto", trainer="ddp", **SMALL))


# ---- limits of the machine


def limited(what: int, limit: int, work: Callable[[], int]) -> tuple[int, str, str]:
    def under_limit() -> int:
        resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))
        return work()

    with forked(under_limit) as child:
        return child.ended()


def used() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def assert_one_line(answer: tuple[int, str, str], code: int, *said: str) -> None:
    assert answer[0] == code, answer
    lines = [line for line in answer[2].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in answer[2], answer[2]
    assert all(text in lines[0] for text in said), lines


@pytest.mark.fault("F39")
def test_too_little_address_space_is_one_line(home: Path) -> None:
    words = overrides(home, name="space", **(SMALL | {"model__d_model": 4096, "batch_rows": 64}))
    answer = limited(resource.RLIMIT_AS, used() + 300_000_000, lambda: cli.main(words))
    assert_one_line(answer, 2, "out of memory", "allowed by ulimit -v")


@pytest.mark.fault("F39")
def test_too_few_open_files_is_one_line(home: Path) -> None:
    words = overrides(home, name="files", **(SMALL | {"data__loader_workers": 4}))
    free = sorted(set(range(200)) - set(map(int, os.listdir("/proc/self/fd"))))
    answer = limited(resource.RLIMIT_NOFILE, free[10], lambda: cli.main(words))
    assert_one_line(answer, 5, "too many open files", "ulimit -n")


@pytest.mark.fault("F39")
@pytest.mark.parametrize("size", ["4k", "64k"], ids=["for semaphores", "for batches"])
def test_full_shared_memory_is_one_line(home: Path, size: str) -> None:
    permitted(CLONE_NEWNS)
    words = overrides(home, name=f"shm-{size}", **(SMALL | {"data__loader_workers": 1, "batch_rows": 64}))

    def without_shared_memory() -> int:
        unshare(CLONE_NEWNS)
        for mount in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]):
            subprocess.run(["mount", *mount], check=True)
        return cli.main(words)

    with forked(without_shared_memory) as child:
        answer = child.ended()
    assert_one_line(answer, 5, "shared memory", "data.loader_workers=0")


# ---- clocks and names


@pytest.mark.fault("F40")
def test_a_clock_that_is_set_back_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))  # an hour back each time that it is read
    record = train(tiny(home, name="back", checkpoint__every=2, **SMALL))
    assert record is not None
    assert 0 < record.wall_seconds < 300 and record.tokens_per_second > 0
    assert_whole(home, "back")


@pytest.mark.slow
@pytest.mark.fault("F40")
def test_runs_of_one_moment_have_folders_of_their_own_or_are_refused(home: Path) -> None:
    runs = [tiny(home, seed=seed) for seed in range(50)]
    assert len({run.folder for run in runs}) == 50
    from llmtrain.lock import RunLock

    with RunLock(runs[0].folder), pytest.raises(UserError, match="is in use by process"):
        train(tiny(home, seed=0))


@pytest.mark.fault("F40")
def test_the_id_of_a_run_at_wandb_is_its_own_and_stays(tmp_path: Path) -> None:
    from llmtrain.callbacks.loggers.wandb import _id

    folders = [tmp_path / place / "same-name" for place in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    one, two = map(_id, folders)
    assert one != two and _id(folders[0]) == one
