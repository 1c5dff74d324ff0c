"""A run kept going: its ranks started again after a crash or a hang, as long as that leads anywhere."""

import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NamedTuple

from llmtrain.errors import EXIT_CODES
from llmtrain.launch.group import Group, Limits, Outcome
from llmtrain.launch.processes import Start

LONGEST_PAUSE = 60.0  # seconds


class Policy(NamedTuple):
    """When to start again."""

    restarts: int = 3  # in a row that lead to no further step
    pause: float = 1.0  # seconds before the first of them; each next one waits twice as long


class Signals:
    """Within it, SIGINT, SIGTERM and SIGUSR1 are collected for whoever asks."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._receive) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> list[int]:
        taken, self.received = self.received, []
        return taken

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


def supervise(start: Start, *, ranks: int, limits: Limits | None = None, policy: Policy | None = None) -> int:
    """Run ``ranks`` of what ``start`` starts to the end; the exit code, as ``llmtrain.errors`` lists them.

    Every attempt has a rendezvous of its own. Mistakes in the config or the data, and numbers that are not finite, are
    the same at the next start and end the run; so does a signal, which is passed on to every rank.
    """
    limits, policy = limits or Limits(), policy or Policy()
    furthest, in_vain, attempt = -1, 0, 0
    with Signals() as signals:
        while True:
            attempt += 1
            outcome = Group(start, ranks, limits, os.environ, signals.take).run()
            if outcome.failure is None:
                return outcome.exit_code
            in_vain = in_vain + 1 if outcome.step <= furthest else 1
            furthest = max(furthest, outcome.step)
            again = outcome.failure.may_be_retried and in_vain <= policy.restarts
            _tell(outcome, again=again, ranks=ranks)
            if not again:
                if outcome.failure.may_be_retried:
                    _say(_gave_up(attempt, outcome))
                return outcome.exit_code
            pause = min(policy.pause * 2 ** (in_vain - 1), LONGEST_PAUSE)
            _say(f"starting again in {pause:g} s from the newest checkpoint (start {attempt + 1})")
            if (stopped := _paused(pause, signals)) is not None:
                return EXIT_CODES[stopped]


def _tell(outcome: Outcome, *, again: bool, ranks: int) -> None:
    """The root cause first, and once: what the failing rank itself said."""
    assert outcome.failure is not None, "there is something to tell"
    one_line = not again and not outcome.failure.may_be_retried and bool(outcome.said)
    if not one_line:
        _say(outcome.failure.describe(outcome.step) + (":" if outcome.said else ""))
    for line in outcome.said:
        print(line, file=sys.stderr)


def _gave_up(attempt: int, outcome: Outcome) -> str:
    starts = f"{attempt} start{'s' if attempt > 1 else ''}"
    return f"gave up after {starts}, the last ones without a step beyond {outcome.step}: the same command continues"


def _paused(seconds: float, signals: Signals) -> int | None:
    """Wait; the signal that ended it early."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if received := signals.take():
            return received[0]
        time.sleep(min(0.1, max(0.0, until - time.monotonic())))
    return None


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
