"""A command in a process of its own, forked from that of the tests: a fresh one takes seconds to import torch."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import IO, NamedTuple, NoReturn

from llmtrain.launch.processes import Start, tied_to


class Child(NamedTuple):
    pid: int
    out: IO[str]
    err: IO[str]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> tuple[int, str, str]:
        """Exit code (negative: by that signal), and what else it wrote."""
        out, err = self.out.read(), self.err.read()  # a command writes little: neither pipe fills up
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), out, err


@contextlib.contextmanager
def forked(work: Callable[[], int]) -> Iterator[Child]:
    """``work`` in a child, whose exit code it returns; what is left of the child is killed at the end."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        _child(work, out_end, err_end)
    os.close(out_end), os.close(err_end)
    with os.fdopen(out) as said, os.fdopen(err) as errors:
        try:
            yield Child(pid, said, errors)
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended
                os.kill(pid, 9)
                os.waitpid(pid, 0)


def _child(work: Callable[[], int], out: int, err: int) -> NoReturn:
    code = 1
    try:
        os.dup2(out, 1), os.dup2(err, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # nothing of pytest's runs here


def read_until(stream: IO[str], text: str) -> None:
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}")


class Fork:
    """A rank that was forked, as ``subprocess.Popen`` is one that was executed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode


def forks(work: Callable[[], int]) -> Start:
    """``work`` in forks of this process, as the ranks of a supervisor."""

    def start(env: Mapping[str, str], out: int, err: int) -> Fork:
        tie = tied_to(os.getpid())
        if pid := os.fork():
            with contextlib.suppress(PermissionError):  # it has been so for some time
                os.setpgid(pid, pid)
            return Fork(pid)
        os.setpgid(0, 0)
        tie()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)  # those of the supervisor
        os.environ.clear()
        os.environ.update(env)
        _child(work, out, err)

    return start
