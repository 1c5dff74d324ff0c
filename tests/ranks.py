"""Groups of processes that train together: forked, since a fresh one takes seconds to import torch."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

import torch


def on_ranks(n: int, work: Callable[[], object]) -> None:
    """``work`` in each of ``n`` processes, for Lightning and torch one group; all must end well.

    A failing one is ended with the others, which may wait for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {_forked(rank, n, port, work) for rank in range(n)}
    try:
        while left:
            pid, status = os.waitpid(-1, 0)
            left.discard(pid)
            assert os.waitstatus_to_exitcode(status) == 0, "a rank failed: see what it said"
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _forked(rank: int, n: int, port: int, work: Callable[[], object]) -> int:
    sys.stdout.flush(), sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        where = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": n,
            "RANK": rank,
            "LOCAL_RANK": rank,
        }
        os.environ.update({key: str(value) for key, value in where.items()})
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # nothing of pytest's runs here
