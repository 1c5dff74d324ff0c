"""One attempt: the ranks of a run started together, watched, and ended together."""

import contextlib
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from llmtrain import heartbeat
from llmtrain.errors import EXIT_CODES
from llmtrain.heartbeat import Beat
from llmtrain.launch.blame import LAST_WORDS, STOPPED, Failure, root_cause
from llmtrain.launch.processes import Lines, Process, Start, free_port, is_stopped, signal_group

TICK = 0.1  # seconds between two looks
SETTLE = 1.0  # seconds for the others to fail too, before one of them is blamed
RELEASE = 5.0  # seconds after which the first rank's last words were not its last, and are shown
EXIT = 10.0  # seconds to exit after all is done
ANSWER = 1.0  # seconds to say where it hangs
KEPT = 400  # lines of each rank


class Limits(NamedTuple):
    """Seconds."""

    start: float = 1800.0  # without a sign of life before a rank's first step has ended
    step: float = 600.0  # the same afterwards
    grace: float = 10.0  # between SIGTERM and SIGKILL


class Outcome(NamedTuple):
    step: int  # that the furthest rank came to
    failure: Failure | None  # none: all ranks exited with 0, or were told to stop
    exit_code: int
    said: list[str]  # of the failing rank, where it was not shown before


class Rank:
    """A process, its pulse, and its words: the first rank's pass through, those of others are kept."""

    def __init__(self, number: int, start: Start, env: Mapping[str, str], heart: Path) -> None:
        self.number, self.heart = number, heart
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.pipes = {Lines(out): False, Lines(err): True}  # whether it is stderr
        try:
            self.process: Process = start({**env, heartbeat.VARIABLE: str(heart)}, out_end, err_end)
        finally:
            os.close(out_end)
            os.close(err_end)
        self.code: int | None = None  # none: it runs
        self.beat: Beat | None = None
        self.heard = True  # whether its words are still taken
        self.tail: deque[str] = deque(maxlen=KEPT)  # of stderr
        self.held: list[str] = []  # of the first rank's stderr, from what may be its last words on
        self._held_since = 0.0
        self._seen = time.monotonic()  # when the beat was last seen to change

    def look(self) -> None:
        self.code = self.process.poll()
        beat = heartbeat.read(self.heart)
        if beat != self.beat:
            self.beat, self._seen = beat, time.monotonic()

    def hear(self, pipe: Lines) -> bool:
        """Take in what it said; whether it may say more."""
        lines = pipe.read()
        if self.heard:
            for line in lines or ():
                self.take(line, error=self.pipes[pipe])
        return lines is not None

    def release(self) -> None:
        """Show what was held back."""
        for line in self.held:
            print(line, file=sys.stderr, flush=True)
        self.held.clear()

    def held_for(self) -> float:
        return time.monotonic() - self._held_since if self.held else 0.0

    def silent(self) -> float:
        """Seconds since its last sign of life."""
        return time.monotonic() - self._seen

    @property
    def step(self) -> int:
        return self.beat.step if self.beat else 0

    @property
    def mark(self) -> str:
        return self.beat.mark if self.beat else heartbeat.STARTING

    def place(self) -> tuple[int, bool, float]:
        """How far it has come: the least of all is who the others wait for."""
        return self.step, self.mark == heartbeat.BEGUN, -self.silent()

    def failure(self) -> Failure:
        return Failure(self.number, self.code, list(self.tail))

    def close(self) -> None:
        for pipe in self.pipes:
            os.close(pipe.descriptor)

    def take(self, line: str, *, error: bool) -> None:
        if error:
            self.tail.append(line)
        if self.number:
            return
        if error and (self.held or LAST_WORDS.match(line)):
            self._held_since = self._held_since if self.held else time.monotonic()
            self.held.append(line)
        else:
            print(line, file=sys.stderr if error else sys.stdout, flush=True)


class Group:
    """``ranks`` processes that train together. ``signals`` gives, and forgets, what the supervisor was sent."""

    def __init__(
        self,
        start: Start,
        ranks: int,
        limits: Limits,
        env: Mapping[str, str],
        signals: Callable[[], list[int]],
    ) -> None:
        self.limits, self.signals = limits, signals
        self.stop: int | None = None  # the first signal that was passed on
        self.failed: list[Rank] = []  # in the order in which it was seen
        self._failed_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._folder = Path(tempfile.mkdtemp(prefix="llmtrain-"))
        self.ranks: list[Rank] = []
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # a fresh one each attempt
        try:
            for number in range(ranks):
                own = environment(env, number, ranks) | rendezvous
                self.ranks.append(Rank(number, start, own, self._folder / str(number)))
                for pipe in self.ranks[-1].pipes:
                    self._selector.register(pipe.descriptor, selectors.EVENT_READ, (self.ranks[-1], pipe))
        except BaseException:
            self.end()
            raise

    def run(self) -> Outcome:
        """Wait for the end of all ranks, and make it where one fails or hangs."""
        try:
            hung: Rank | None = None
            while self._alive() and hung is None and not self._settled():
                self._turn(TICK)
                hung = self._hung()
            self._turn(0.0)
            if self.failed:
                return self._outcome(root_cause([rank.failure() for rank in self.failed]))
            if hung is not None and hung.mark != heartbeat.DONE:
                return self._outcome(self._questioned(hung))
            self.ranks[0].release()
            return self._outcome(None)
        finally:
            self.end()

    def end(self) -> None:
        """Leave no process behind: SIGTERM to each rank, then SIGKILL to it and whatever it started."""
        for rank in self.ranks:
            rank.heard = False
        self._signal(signal.SIGTERM)
        until = time.monotonic() + self.limits.grace
        while self._alive() and time.monotonic() < until:
            self._turn(TICK)
        for rank in self.ranks:
            signal_group(rank.process, signal.SIGKILL)
        while self._alive():
            self._turn(TICK)
        for rank in self.ranks:
            rank.close()
        self._selector.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _alive(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.code is None]

    def _turn(self, seconds: float) -> None:
        """Pass on what was said and signalled, and look who lives."""
        for key, _ in self._selector.select(seconds):
            rank, pipe = key.data
            if not rank.hear(pipe):
                self._selector.unregister(pipe.descriptor)
        for number in self.signals():
            self.stop = self.stop or number
            self._signal(number)
        for rank in self._alive():
            rank.look()
            if rank.code:
                self._failed_at = self._failed_at if self.failed else time.monotonic()
                self.failed.append(rank)
        if not self.failed and self.ranks[0].held_for() > RELEASE:
            self.ranks[0].release()

    def _settled(self) -> bool:
        """Whether enough time has passed since the first failure to know whose it was."""
        # who was told to stop may still have to save
        patience = self.limits.grace if self.failed and self.failed[0].code in STOPPED else SETTLE
        return bool(self.failed) and time.monotonic() - self._failed_at > patience

    def _hung(self) -> Rank | None:
        """The rank that all wait for, once one of them has been silent for too long."""
        alive = self._alive()
        at_work = [rank for rank in alive if rank.mark != heartbeat.DONE] or alive
        if not any(rank.silent() > self._patience(rank) for rank in at_work):
            return None
        return min(at_work, key=lambda rank: (not is_stopped(rank.process.pid), *rank.place()))

    def _patience(self, rank: Rank) -> float:
        return {heartbeat.STARTING: self.limits.start, heartbeat.DONE: EXIT}.get(rank.mark, self.limits.step)

    def _questioned(self, rank: Rank) -> Failure:
        """What a silent rank is doing, in its own words where it can still speak."""
        if is_stopped(rank.process.pid):
            rank.take(f"process {rank.process.pid} is stopped, as by SIGSTOP", error=True)
        elif rank.beat is not None:  # else its answer to the signal would be to die
            os.kill(rank.process.pid, heartbeat.WHERE)
            self._turn(ANSWER)
            self._turn(TICK)
        return rank.failure()

    def _outcome(self, failure: Failure | None) -> Outcome:
        step = max(rank.step for rank in self.ranks)
        if failure is None:
            return Outcome(step, None, 0, [])
        if self.stop is not None and failure.code == -self.stop:  # before it could take it otherwise
            return Outcome(step, None, EXIT_CODES[self.stop], [])
        if failure.code in STOPPED:  # it has said so itself
            return Outcome(step, None, failure.exit_code, [])
        if failure.rank == 0:  # all but what was held is shown already
            failure = failure._replace(tail=list(self.ranks[0].held))
        return Outcome(step, failure, failure.exit_code, failure.last_words())

    def _signal(self, number: int) -> None:
        for rank in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.process.pid, number)


def environment(env: Mapping[str, str], rank: int, ranks: int) -> dict[str, str]:
    """What tells a process which of the ranks on this machine it is, as torchrun tells it."""
    kept = {key: value for key, value in env.items() if not key.startswith(("SLURM_", "TORCHELASTIC_"))}
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return (
        {"OMP_NUM_THREADS": threads}
        | kept
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "NODE_RANK": "0",
        }
    )
