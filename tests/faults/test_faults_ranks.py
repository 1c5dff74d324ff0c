"""Two ranks that train together, one of which is killed, hangs, raises or is told to stop: nothing is lost or left."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llmtrain import cli, faults
from llmtrain.compose import compose
from llmtrain.launch import group
from llmtrain.launch.group import Limits
from llmtrain.launch.supervisor import Policy, supervise
from processes import forked, forks, read_until
from runs import metrics, overrides, weights, write_text

STEPS = 12
CHANGES: dict[str, Any] = {
    "trainer": "ddp", "trainer__accelerator": "cpu", "seq_len": 64, "steps": STEPS, "checkpoint__every": 3,
    "eval__samples": 0, "eval__rows": 4, "eval__every": 5,
}  # fmt: skip
SLOW_MACHINE = Limits(start=120.0, step=60.0, grace=1.0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that nothing happened to is called whole."""
    folder = tmp_path_factory.mktemp("ranks")
    write_text(folder)
    compose(overrides(folder, **CHANGES))  # what forks need not compose again
    assert launched(folder, "whole")() == 0
    return folder


def launched(
    home: Path, name: str, *, fault: str = "", restarts: int = 3, step: float = 60.0, **changes: object
) -> Callable[[], int]:
    """The supervisor over the real command on two ranks, each a fork of this process."""
    words = overrides(home, name=name, **(CHANGES | changes))

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(faults.VARIABLE, fault)
            return supervise(
                forks(lambda: cli.main(words)),
                ranks=2,
                limits=SLOW_MACHINE._replace(step=step),
                policy=Policy(restarts=restarts, pause=0.0),
            )

    return run


def assert_whole(home: Path, name: str) -> None:
    """Every logged number and every bit of the weights are those of the run that nothing happened to."""
    assert metrics(home / "runs" / name) == metrics(home / "runs" / "whole")
    assert weights(home / "runs" / name, STEPS) == weights(home / "runs" / "whole", STEPS)


def steps_done(out: str) -> list[int]:
    return [int(n) for n in re.findall(r"^step (\d+)/\d+  loss", out, re.MULTILINE)]


@pytest.mark.fault("F29", "F32")
def test_ranks_that_are_killed_are_started_again_from_the_newest_checkpoint(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = "kill@step=2,rank=1;kill@step=7,rank=0;kill@step=11,rank=1"
    assert launched(home, "killed", fault=fault)() == 0
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("launch:")]
    assert told[::2] == [
        f"launch: rank {rank} was killed by SIGKILL at step {step}"
        for rank, step in ((1, 2), (0, 7), (1, 11))
    ]
    assert "Traceback" not in err and "losed by peer" not in err
    again = [
        step for before, step in zip(steps_done(out), steps_done(out)[1:], strict=False) if step <= before
    ]
    # at most what one interval of checkpoints holds, and the checkpoint that was being written
    assert len(again) == 3 and all(step >= 7 - 2 * 3 for step in again[1:])
    assert_whole(home, "killed")


@pytest.mark.fault("F30")
@pytest.mark.parametrize(
    ("fault", "told"), [("hang@step=5,rank=1", "faults.py"), ("stop@step=5,rank=0", "SIGSTOP")]
)
def test_a_rank_that_hangs_is_told_apart_from_those_that_wait_for_it(
    home: Path, fault: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = fault.partition("@")[0]
    assert launched(home, name, fault=fault, step=6.0)() == 0
    err = capsys.readouterr().err
    assert f"launch: rank {fault[-1]} hangs at step 5:" in err and told in err
    assert_whole(home, name)


@pytest.mark.fault("F31")
def test_what_a_rank_raised_is_shown_first_and_once_and_the_others_not_at_all(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(home, "raised", fault="raise@step=4,rank=1", restarts=0)() == 1
    err = capsys.readouterr().err
    said = err[err.index("launch:") :]
    assert said.startswith("launch: rank 1 ended with exit code 1 at step 4:\n")
    assert err.count("RuntimeError: LLMTRAIN_FAULT: raise@step=4,rank=1") == 1
    assert "losed by peer" not in err and said.count("Traceback") <= 1


@pytest.mark.fault("F32")
def test_a_crash_at_the_same_step_each_time_is_given_up(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(home, "loop", fault="kill@step=4,rank=1,times=9", restarts=1)() == 75
    err = capsys.readouterr().err
    assert err.count("was killed by SIGKILL at step 4") == 2 and "gave up after 2 starts" in err


@pytest.mark.fault("F3")
@pytest.mark.parametrize(
    ("to", "number"),
    [
        ("launcher", signal.SIGTERM),
        ("launcher", signal.SIGINT),
        ("rank 0", signal.SIGUSR1),
        ("rank 1", signal.SIGTERM),
    ],
)
def test_a_signal_to_the_launcher_or_to_one_rank_ends_all_after_the_step(
    home: Path, to: str, number: signal.Signals
) -> None:
    name = f"{number.name}-{to[-1]}"
    kind = {signal.SIGTERM: "term", signal.SIGUSR1: "usr1"}.get(number)
    fault = "slow@step=*,seconds=0.3" if to == "launcher" else f"{kind}@step=4,rank={to[-1]}"
    with forked(launched(home, name, fault=fault)) as child:
        if to == "launcher":
            read_until(child.out, "step 4/")
            child.signal(number)
        code, _, err = child.ended()
    assert code == (130 if number == signal.SIGINT else 143), err
    assert len(re.findall(r"^stopped at step \d+ of 12, saved in", err, re.MULTILINE)) == 1
    assert "launch:" not in err and "Traceback" not in err
    assert launched(home, name)() == 0
    assert_whole(home, name)


@pytest.mark.fault("F31")
@pytest.mark.parametrize(
    ("changes", "fault", "code", "told"),
    [
        ({"batch_rows": 3}, "", 2, "batch_rows=3 cannot be shared"),
        ({"data__source__paths": "[no/such/file.txt]"}, "", 3, "no/such/file.txt"),
        ({}, "nan@step=4,rank=1", 4, "step 5: loss"),
    ],
)
def test_a_mistake_ends_all_ranks_at_once_with_its_code_and_one_line(
    home: Path, changes: dict[str, Any], fault: str, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "nan" if fault else "mistake"
    assert launched(home, name, fault=fault, **changes)() == code
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and told in errors[0]
    assert "launch:" not in err and "Traceback" not in err


@pytest.mark.fault("F4", "F29")
def test_a_disk_that_is_full_for_one_rank_is_said_by_that_rank(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(home, "full", fault="enospc@save=2,rank=1", restarts=0)() == 5
    err = capsys.readouterr().err
    assert "No space left on device" in err and "another rank failed" not in err
    assert launched(home, "full")() == 0
    assert_whole(home, "full")


@pytest.mark.fault("F33")
def test_the_end_is_a_clean_exit_within_seconds_and_a_rank_that_does_not_exit_is_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = home / "runs" / "whole" / "record.json"
    began = time.time()
    assert launched(home, "end", steps=2)() == 0
    assert (
        time.time() - (home / "runs" / "end" / "record.json").stat().st_mtime < 10 < time.time() - began + 10
    )
    monkeypatch.setattr(group, "EXIT", 1.0)
    assert launched(home, "stuck", fault="hang@exit=1,rank=1", steps=2)() == 0
    assert record.exists() and (home / "runs" / "stuck" / "record.json").exists()


@pytest.mark.fault("F29")
def test_more_ranks_than_the_config_says_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launched(home, "one", trainer__devices=1)() == 2
    assert "2 ranks were started, and trainer.devices=1" in capsys.readouterr().err


@pytest.mark.fault("F29")
def test_ranks_that_slurm_started_are_a_run_too(home: Path) -> None:
    """Two forks with the variables that ``srun`` sets, and nothing else of a launcher."""
    words = overrides(home, name="slurm", **CHANGES)

    def rank(number: int) -> Callable[[], int]:
        def run() -> int:
            slurm = {
                "JOB_ID": 4242, "JOB_NAME": "train", "NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1, "NODEID": 0,
                "PROCID": number, "LOCALID": number, "NODELIST": "127.0.0.1",
            }  # fmt: skip
            os.environ |= {f"SLURM_{key}": str(value) for key, value in slurm.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            return cli.main(words)

        return run

    port = group.free_port()
    with forked(rank(0)) as first, forked(rank(1)) as second:
        ends = first.ended(), second.ended()
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert not dist.is_initialized()
    assert_whole(home, "slurm")
