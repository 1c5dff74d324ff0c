"""Ranks of a supervised run, forked: they beat as training does, speak, or sleep."""

import os
import sys
import time
from collections.abc import Callable

from llmtrain import heartbeat
from llmtrain.launch.group import Limits
from llmtrain.launch.supervisor import Policy, supervise
from processes import forks

QUICK = Limits(start=20.0, step=0.6, grace=0.5)
ONCE = Policy(restarts=0)


def rank() -> int:
    return int(os.environ["RANK"])


def steps(last: int, first: int = 0) -> None:
    """Beat as training does."""
    heartbeat.start()
    for step in range(first, last):
        heartbeat.beat(step, heartbeat.BEGUN)
        heartbeat.beat(step + 1, heartbeat.READY)


def launched(
    work: Callable[[], int], *, ranks: int = 2, limits: Limits = QUICK, policy: Policy = ONCE
) -> int:
    return supervise(forks(work), ranks=ranks, limits=limits, policy=policy)


def say(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


def sleeps() -> int:
    time.sleep(100)
    return 0
