"""Processes that end with the one that started them, and what they say, line by line."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

_PR_SET_PDEATHSIG = 1  # prctl(2)


@runtime_checkable
class Process(Protocol):
    """What a supervisor needs of a rank; ``subprocess.Popen`` has it."""

    pid: int

    def poll(self) -> int | None: ...


Start = Callable[[Mapping[str, str], int, int], Process]  # (environment, stdout, stderr) to a running process


def starter(command: Sequence[str]) -> Start:
    """How to start ``command``; a word that ends in .py is run by this Python."""
    words = [sys.executable, *command] if command[0].endswith(".py") else list(command)

    def start(env: Mapping[str, str], out: int, err: int) -> Process:
        return subprocess.Popen(
            words,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor alone, which passes it on once
            preexec_fn=tied_to(os.getpid()),
        )

    return start


def tied_to(parent: int, number: int = signal.SIGKILL) -> Callable[[], None]:
    """A function that, in a new child of ``parent``, has it signalled when ``parent`` ends, however it ends."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)

    return tie


def signal_group(process: Process, number: int) -> None:
    """Signal a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by SIGSTOP or a debugger; false where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in {"T", "t"}
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Lines:
    """The whole lines of what is read from a pipe in pieces."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._rest = b""

    def read(self) -> list[str] | None:
        """What has come since; None when the other end is closed and all was given."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data:
            if not self._rest:
                return None
            whole, self._rest = [self._rest], b""
        return [line.decode(errors="replace") for line in whole]
