"""One process a cell: where the cells of a sweep run, so many at a time."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import PositiveInt

from llmtrain.config import config
from llmtrain.launch.processes import signal_group, tied_to

TRAIN = Path(__file__).parents[2] / "train.py"
GRACE = 120.0  # seconds that a stopped cell has to end its step and to save

H = TypeVar("H")


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
    ) -> None:
        """Run ``jobs`` in their order, and tell of each as it starts and ends; on any error all are stopped first."""


@config
class Launch(ABC):
    """Where the cells of a sweep run, one process each."""

    threads: PositiveInt = 1  # CPU threads of each

    @property
    def beside(self) -> int:
        """How many other cells run on the machine of one, as far as is known here."""
        return 0

    @abstractmethod
    def pool(self, folder: Path) -> Pool:
        """``folder`` is the sweep's. Raises ConfigError where what it needs is not there."""


@config
class Local(Launch):
    """Processes of this machine."""

    workers: PositiveInt | None = None  # at a time; none: one a core

    @property
    def beside(self) -> int:
        return LocalPool(self.workers, self.threads).workers - 1

    def pool(self, folder: Path) -> "LocalPool":
        return LocalPool(self.workers, self.threads)


class Watched(ABC, Generic[H]):
    """A pool that looks at its running cells again and again; ``H`` is what it holds of one of them."""

    workers: int
    poll = 0.2  # seconds between two looks

    def __init__(self) -> None:
        self._running: dict[Job, tuple[H, float]] = {}

    def run(
        self, jobs: Sequence[Job], on_start: Callable[[Job], None], on_end: Callable[[Ended], None]
    ) -> None:
        waiting = list(reversed(jobs))
        woken = signal.set_wakeup_fd(-1)  # whoever waits there would not wait for cells to save
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.workers:
                    on_start(waiting[-1])
                    job = waiting.pop()
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    self._running[job] = self.start(job), time.monotonic()
                for ended in self._ended():
                    on_end(ended)
                if self._running:
                    time.sleep(self.poll)
        finally:
            try:
                for ended in self._stopped():
                    on_end(ended)
            finally:
                signal.set_wakeup_fd(woken)

    @abstractmethod
    def start(self, job: Job) -> H: ...

    @abstractmethod
    def code(self, job: Job, held: H) -> int | None:
        """The exit code; none while it runs."""

    @abstractmethod
    def stop(self, held: H) -> None:
        """Tell it to end its step and to save."""

    @abstractmethod
    def kill(self, held: H) -> None:
        """End it, and wait for that."""

    def _ended(self) -> list[Ended]:
        found = []
        for job, (held, started) in list(self._running.items()):
            if (code := self.code(job, held)) is not None:
                del self._running[job]
                found.append(Ended(job, code, time.monotonic() - started))
        return found

    def _stopped(self) -> list[Ended]:
        """End what still runs: each lets its step end and saves; who does not within ``GRACE`` is killed."""
        for held, _ in self._running.values():
            self.stop(held)
        limit = time.monotonic() + GRACE
        found = self._ended()
        while self._running and time.monotonic() < limit:
            time.sleep(self.poll)
            found += self._ended()
        for held, _ in self._running.values():
            self.kill(held)
        return found + self._ended()


class LocalPool(Watched["subprocess.Popen[bytes]"]):
    """Processes of this machine, each with ``threads`` threads, ``workers`` at a time.

    One thread for each of several processes beats several threads of one at the sizes of a sweep. A cell is a process
    group of its own, so that Ctrl-C reaches the sweep alone, which then lets its cells end their step and save. So they
    do, too, when the sweep is killed: one that went on would hold its folder against the next start.
    """

    def __init__(self, workers: int | None, threads: int):
        super().__init__()
        self.workers = workers or max(1, (os.cpu_count() or 1) // threads)
        self.threads = threads

    def start(self, job: Job) -> "subprocess.Popen[bytes]":
        return process(job.words, job.log, self.threads)

    def code(self, job: Job, held: "subprocess.Popen[bytes]") -> int | None:
        return held.poll()

    def stop(self, held: "subprocess.Popen[bytes]") -> None:
        held.terminate()  # it alone: without its data workers it could not end its step

    def kill(self, held: "subprocess.Popen[bytes]") -> None:
        signal_group(held, signal.SIGKILL)
        held.wait()


def process(words: Sequence[str], log: Path, threads: int) -> "subprocess.Popen[bytes]":
    """train.py as a process group of its own, which saves and ends when this process does."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *words, f"trainer.threads={threads}"],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
            preexec_fn=tied_to(os.getpid(), signal.SIGTERM),
        )


def last_line(log: Path) -> str:
    """What a cell said last: of one that failed, its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or ["it said nothing"])[-1]
