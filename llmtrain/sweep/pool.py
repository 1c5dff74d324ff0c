"""One process a cell: where the cells of a sweep run, so many at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from llmtrain.launch.processes import signal_group, tied_to

TRAIN = Path(__file__).parents[2] / "train.py"
POLL = 0.2  # seconds between two looks at the processes
GRACE = 120.0  # seconds that a stopped cell has to end its step and to save


class Job(NamedTuple):
    id: str
    words: Sequence[str]  # of train.py
    log: Path  # what it says


class Ended(NamedTuple):
    job: Job
    exit_code: int
    seconds: float


@runtime_checkable
class Pool(Protocol):
    """Where cells run; ``workers`` of them at a time."""

    workers: int

    def run(
        self, jobs: Sequence[Job], on_start: Callable[[Job], None], on_end: Callable[[Ended], None]
    ) -> None: ...


class LocalPool:
    """Processes of this machine, each with ``threads`` threads, ``workers`` at a time.

    One thread for each of several processes beats several threads of one at the sizes of a sweep. A cell is a process
    group of its own, so that Ctrl-C reaches the sweep alone, which then lets its cells end their step and save. So they
    do, too, when the sweep is killed: one that went on would hold its folder against the next start.
    """

    def __init__(self, workers: int | None, threads: int):
        self.workers = workers or max(1, (os.cpu_count() or 1) // threads)
        self.threads = threads
        self._running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}

    def run(
        self, jobs: Sequence[Job], on_start: Callable[[Job], None], on_end: Callable[[Ended], None]
    ) -> None:
        """Run ``jobs`` in their order, and tell of each as it starts and ends; on any error all are stopped first."""
        waiting = list(reversed(jobs))
        woken = signal.set_wakeup_fd(-1)  # whoever waits there would not wait for cells to save
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.workers:
                    on_start(waiting[-1])
                    self._start(waiting.pop())
                for ended in self._ended():
                    on_end(ended)
                if self._running:
                    time.sleep(POLL)
        finally:
            try:
                for ended in self._stop():
                    on_end(ended)
            finally:
                signal.set_wakeup_fd(woken)

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *job.words, f"trainer.threads={self.threads}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=tied_to(os.getpid(), signal.SIGTERM),
            )
        self._running[job] = process, time.monotonic()

    def _ended(self) -> list[Ended]:
        found = []
        for job, (process, started) in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[job]
                found.append(Ended(job, code, time.monotonic() - started))
        return found

    def _stop(self) -> list[Ended]:
        """End what still runs: each lets its step end and saves; who does not within ``GRACE`` is killed."""
        for process, _ in self._running.values():
            process.terminate()  # it alone: without its data workers it could not end its step
        limit = time.monotonic() + GRACE
        found = self._ended()
        while self._running and time.monotonic() < limit:
            time.sleep(POLL)
            found += self._ended()
        for process, _ in self._running.values():
            signal_group(process, signal.SIGKILL)
            process.wait()
        return found + self._ended()


def last_line(log: Path) -> str:
    """What a cell said last: of one that failed, its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or ["it said nothing"])[-1]
