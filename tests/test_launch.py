"""The supervisor of ranks: it sees who failed, starts again while that leads anywhere, and says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launched import launched, rank, say, sleeps, steps
from llmtrain.launch import group
from llmtrain.launch.blame import Failure, root_cause
from llmtrain.launch.supervisor import Policy
from runs import REPO


@pytest.mark.fault("F32")
def test_ranks_know_who_they_are_and_meet_at_a_port_of_their_own_each_time(tmp_path: Path) -> None:
    def work() -> int:
        keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
        (tmp_path / os.environ["MASTER_PORT"]).touch()
        (tmp_path / f"rank {rank()}").write_text(" ".join(os.environ[key] for key in keys))
        return 75 if len(list(tmp_path.glob("[0-9]*"))) < 3 else 0

    assert launched(work, policy=Policy(restarts=5, pause=0.0)) == 0
    assert [(tmp_path / f"rank {n}").read_text() for n in (0, 1)] == ["0 0 2 127.0.0.1", "1 1 2 127.0.0.1"]
    assert len(list(tmp_path.glob("[0-9]*"))) == 3


def test_the_first_rank_speaks_and_the_others_are_heard_only_when_they_fail(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        print(f"out {rank()}")
        return say(f"err {rank()}", 0)

    assert launched(work) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("out 0\n", "err 0\n")


@pytest.mark.fault("F31")
def test_the_cause_is_shown_first_and_once_whoever_dies_first(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        steps(7)
        if rank() == 0:  # it hears of the other's end before that one has ended
            return say("Traceback (most recent call last):\nRuntimeError: Connection closed by peer", 1)
        time.sleep(0.2)
        return say('Traceback (most recent call last):\n  File "a.py"\nValueError: the cause', 1)

    assert launched(work) == 1
    err = capsys.readouterr().err
    assert err.startswith("launch: rank 1 ended with exit code 1 at step 7:\nTraceback")
    assert err.count("Traceback") == err.count("the cause") == 1 and "closed by peer" not in err
    assert err.splitlines()[-1].startswith("launch: gave up after 1 start")


def test_what_the_first_rank_survives_is_shown_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "RELEASE", 0.2)

    def work() -> int:
        say("Traceback (most recent call last):\nwas caught", 0)
        time.sleep(0.5)
        return say("went on", 0)

    assert launched(work, ranks=1) == 0
    assert capsys.readouterr().err == "Traceback (most recent call last):\nwas caught\nwent on\n"


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (3, 1), (4, 1), (143, 1), (5, 3), (75, 3), (1, 3)])
def test_what_would_be_the_same_again_is_not_started_again(
    tmp_path: Path, code: int, starts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        with (tmp_path / "starts").open("a") as file:
            file.write(f"{rank()}\n")
        return say("error: optm.lr is unknown", code) if rank() == 1 else sleeps()

    assert launched(work, policy=Policy(restarts=2, pause=0.0)) == code
    assert (tmp_path / "starts").read_text().count("1\n") == starts
    if code in {2, 3, 4}:
        assert capsys.readouterr().err == "error: optm.lr is unknown\n"


@pytest.mark.fault("F32")
def test_it_goes_on_while_steps_are_gained_and_gives_up_when_they_are_not(tmp_path: Path) -> None:
    """Each start comes one step further until the sixth step, which none survives."""
    log = tmp_path / "starts"

    def work() -> int:
        n = len(log.read_text()) if log.exists() else 0
        with log.open("a") as file:
            file.write("x")
        steps(min(n + 1, 6))
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert launched(work, ranks=1, policy=Policy(restarts=2, pause=0.0)) == 75
    assert len(log.read_text()) == 6 + 2


def test_pauses_double_while_nothing_is_gained(capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert launched(lambda: 1, ranks=1, policy=Policy(restarts=2, pause=0.1)) == 1
    assert time.monotonic() - begun > 0.3
    said = capsys.readouterr().err
    assert "starting again in 0.1 s" in said and "starting again in 0.2 s" in said


@pytest.mark.parametrize(
    "failures",
    [
        [(1, "RuntimeError: [gloo/tcp/pair.cc:538] Read error: Connection closed by peer"), (-9, "")],
        [
            (5, "error: the checkpoint was not saved, since another rank failed: see its message"),
            (5, "error: No space"),
        ],
    ],
)
def test_the_cause_is_no_echo_of_it_and_else_what_came_first(failures: list[tuple[int, str]]) -> None:
    echo, cause = (Failure(rank, code, [line]) for rank, (code, line) in enumerate(failures))
    assert root_cause([echo, cause]) == root_cause([cause, echo]) == cause
    other = Failure(2, 1, ["ValueError: x"])
    assert root_cause([cause, other]) == cause and root_cause([other, cause]) == other


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to run"),
        (["--ranks", "0", "--", "train.py"], "no whole number"),
        (["--timeout", "soon", "--", "train.py"], "no number of seconds"),
        (["--", "./no/such/program"], "cannot be run"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_and_exits_with_2(words: list[str], told: str) -> None:
    command = [sys.executable, "scripts/launch.py", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_option_with_what_stands_when_it_is_not_given() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/launch.py", "-h"], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0
    for option in ("--ranks", "--timeout", "--start-timeout", "--grace", "--restarts", "--pause"):
        assert option in done.stdout
