"""The processes of a sweep's cells: whatever ends the sweep, they end their step, save, and leave their folders."""

import signal
import time
from pathlib import Path

import pytest

from llmtrain import cli
from llmtrain.sweep import pool
from llmtrain.sweep.pool import Ended, Job, LocalPool
from processes import forked, read_until

CELL = """
import signal, sys, time
def save(*_):
    time.sleep(1)  # longer than the command line leaves to whatever does not heed a signal
    open(sys.argv[1], "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + ".begun", "w").close()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cell.py").write_text(CELL)
    monkeypatch.setattr(pool, "TRAIN", tmp_path / "cell.py")
    monkeypatch.setattr(cli.Signals, "GRACE", 0.2)


def jobs(folder: Path) -> list[Job]:
    return [Job(name, (str(folder / name),), folder / f"{name}.log") for name in ("a", "b")]


def sweep(folder: Path) -> int:
    """Two cells at once; says so when both have begun."""

    def work() -> None:
        local = LocalPool(3, 1)
        local.run([*jobs(folder)], lambda job: print(job.id, flush=True), lambda ended: None)

    return cli.guarded(work)


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 10
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, f"{[p.name for p in paths if not p.exists()]} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_sweep_its_cells_save_and_end(tmp_path: Path, number: signal.Signals) -> None:
    with forked(lambda: sweep(tmp_path)) as child:
        read_until(child.out, "b")
        wait_for(tmp_path / "a.begun", tmp_path / "b.begun")
        child.signal(number)
        code, _, said = child.ended()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        wait_for(tmp_path / "a", tmp_path / "b")
    else:  # the sweep has waited for them
        assert (code, said) == ({signal.SIGINT: 130, signal.SIGTERM: 143}[number], f"{cli.STOPPED}\n")
        assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_an_error_of_one_cell_stops_the_others_first(tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(
        CELL.replace("time.sleep(60)", "time.sleep(60 * sys.argv[1].endswith('a'))")
    )
    seen: list[Ended] = []

    def on_end(ended: Ended) -> None:
        seen.append(ended)
        if ended.job.id == "b":
            wait_for(tmp_path / "a.begun")
            raise ValueError("b")

    with pytest.raises(ValueError, match="b"):
        LocalPool(2, 1).run(jobs(tmp_path), lambda job: None, on_end)
    assert [(one.job.id, one.exit_code) for one in seen] == [("b", 0), ("a", 143)]
