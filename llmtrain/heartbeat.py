"""Signs of life of a rank, for the supervisor that started it: a file that is touched wherever work goes on.

Where ``LLMTRAIN_HEARTBEAT`` names no file, a beat is one look at a variable.
"""

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VARIABLE = "LLMTRAIN_HEARTBEAT"
WHERE = signal.SIGUSR2  # asks a rank to write where it is to stderr

# what has been reached
STARTING = "starting"  # no step yet: what is prepared, built and compiled may take long
READY = "ready"
BEGUN = "begun"  # a step, which has not ended
DONE = "done"  # all; what is left is to exit

_file: int | None = None
_step, _mark = 0, STARTING


class Beat(NamedTuple):
    time: float  # of the last one, in seconds since the epoch
    step: int  # optimiser steps done
    mark: str


def start() -> None:
    """Begin to beat, if a supervisor asked for it."""
    global _file
    if VARIABLE in os.environ and _file is None:
        _file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        faulthandler.register(WHERE, all_threads=False)
        beat()


def beat(step: int | None = None, mark: str | None = None) -> None:
    """Say that this process lives, and how far it has come where that is given."""
    global _step, _mark
    if _file is None:
        return
    _step = _step if step is None else step
    # the first step counts as starting, since it is the one that compiles
    _mark = _mark if mark is None or (_mark, mark) == (STARTING, BEGUN) else mark
    os.pwrite(_file, f"{_step:<20}{_mark:<8}".encode(), 0)


@contextlib.contextmanager
def waiting(seconds: float = 1.0) -> Iterator[None]:
    """Beat from a thread while this one waits for another process, which is watched itself."""
    if _file is None:
        yield
        return
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(seconds):
            beat()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def read(path: Path) -> Beat | None:
    """The last beat of the rank that beats into ``path``; None before the first."""
    try:
        text, seconds = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except OSError:
        return None
    return Beat(seconds, int(text[:20]), text[20:].strip()) if len(text) == 28 else None


def _leave() -> None:
    global _file
    _file = None  # a worker that reads rows is no rank


os.register_at_fork(after_in_child=_leave)
