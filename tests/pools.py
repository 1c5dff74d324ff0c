"""Where cells of a test run, and contestants are measured: forks, or this process itself."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from llmtrain import cli
from llmtrain.sweep.pool import Ended, Job


class Forked:
    """Cells as forks of the process of the tests, which has imported what they need, one at a time."""

    workers = 1

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(
        self, jobs: Sequence[Job], on_start: Callable[[Job], None], on_end: Callable[[Ended], None]
    ) -> None:
        for job in jobs:
            on_start(job)
            started = time.monotonic()
            self.ran.append(job.id)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            if (pid := os.fork()) == 0:
                with job.log.open("ab") as log:
                    os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
                code = 1
                try:
                    code = cli.main(list(job.words))
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            on_end(Ended(job, code, time.monotonic() - started))


class Here(Executor):
    """Work done at once, by who submits it."""

    def __init__(self) -> None:
        self.n_done = 0

    def submit(self, work: Callable, /, *args: Any, **named: Any) -> Future:
        future: Future = Future()
        future.set_result(work(*args, **named))
        self.n_done += 1
        return future
