"""However ranks end, by hanging, by signals or killed, all of them end, and nothing of theirs is left."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from launched import QUICK, launched, rank, sleeps, steps
from llmtrain import heartbeat
from llmtrain.launch import group
from llmtrain.launch.supervisor import Policy
from processes import forked, read_until


def state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return None


def gone(pids: list[int]) -> bool:
    """Whether all end within some seconds, whoever reaps them."""
    until = time.monotonic() + 5
    while left := [pid for pid in pids if state(pid) not in {None, "Z"}]:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return not left


@pytest.mark.parametrize("how", ["sleeps", "stopped", "deaf"])
@pytest.mark.fault("F30")
def test_a_rank_that_hangs_is_named_asked_where_and_ended_with_all_others(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        (tmp_path / f"{rank()}").write_text(str(os.getpid()))
        steps(5)
        if rank() == 0:
            heartbeat.beat(5, heartbeat.BEGUN)  # waits for the other
            return sleeps()
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return sleeps()

    assert launched(work) == 75
    err = capsys.readouterr().err
    assert err.startswith("launch: rank 1 hangs at step 5:")
    assert ("is stopped, as by SIGSTOP" if how == "stopped" else "in sleeps") in err
    for n in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{n}").read_text()), 0)


def test_before_its_first_step_a_rank_may_take_longer() -> None:
    def work() -> int:
        heartbeat.start()
        heartbeat.beat(0, heartbeat.BEGUN)
        time.sleep(1)
        steps(3)
        return 0

    assert launched(work, limits=QUICK._replace(step=0.5)) == 0
    assert launched(work, limits=QUICK._replace(start=0.5)) == 75


def test_who_waits_for_another_process_does_not_hang() -> None:
    def work() -> int:
        steps(1)
        with heartbeat.waiting(0.1):
            time.sleep(1.2)
        return 0

    assert launched(work) == 0


@pytest.mark.fault("F33")
def test_a_rank_that_is_done_and_does_not_exit_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(group, "EXIT", 0.5)

    def work() -> int:
        steps(3)
        heartbeat.beat(mark=heartbeat.DONE)
        return sleeps() if rank() == 1 else 0

    assert launched(work) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
@pytest.mark.fault("F3")
def test_a_signal_reaches_every_rank_and_ends_the_run_with_its_code(
    number: signal.Signals, code: int
) -> None:
    def work() -> int:
        signal.signal(number, lambda *_: sys.exit(code))
        print("ready", flush=True)
        try:
            time.sleep(100)
        except SystemExit:
            time.sleep(0.2 * rank())  # saves
            print(f"saved {rank()}", flush=True)
            return code
        return 0

    with forked(lambda: launched(work, policy=Policy(restarts=3))) as child:
        read_until(child.out, "ready")
        time.sleep(0.2)
        child.signal(number)
        assert child.ended() == (code, "saved 0\n", "")


@pytest.mark.fault("F29")
def test_no_rank_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    def work() -> int:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        (tmp_path / f"{rank()}").write_text(str(os.getpid()))
        print("ready", flush=True)
        return sleeps()

    with forked(lambda: launched(work, ranks=2)) as child:
        read_until(child.out, "ready")
        until = time.monotonic() + 5
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        pids = [int(path.read_text()) for path in tmp_path.iterdir()]
        child.signal(signal.SIGKILL)
        assert child.ended()[0] == -signal.SIGKILL
    assert len(pids) == 2 and gone(pids)


@pytest.mark.fault("F29")
def test_a_killed_rank_leaves_nothing_that_it_started(tmp_path: Path) -> None:
    def work() -> int:
        if os.fork() == 0:
            (tmp_path / "worker").write_text(str(os.getpid()))
            time.sleep(100)
        while not (tmp_path / "worker").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert launched(work, ranks=1) == 75
    worker = int((tmp_path / "worker").read_text())
    assert gone([worker])
