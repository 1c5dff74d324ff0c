"""Processes that keep a machine as busy as the cells of a sweep will, while steps are timed on it.

Cells that run at once share caches and memory: on two cores each of two is a quarter slower than one alone.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from llmtrain.launch.processes import tied_to


@contextlib.contextmanager
def neighbours(words: Sequence[str], threads: int, n: int) -> Iterator[None]:
    """``n`` processes that train what ``words`` of train.py say, from when all of them do until the block ends."""
    command = [sys.executable, "-m", "llmtrain.sweep.neighbours", str(threads), *words]
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(n):
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                    preexec_fn=tied_to(os.getpid()),
                )
            )
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # nothing, where it ended: the forecast is then of one alone
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main(threads: str, *words: str) -> None:
    """Train the same steps again and again."""
    from llmtrain.compose import run_from
    from llmtrain.data.prepare import prepare
    from llmtrain.sweep.timing import pace

    run = run_from(list(words))
    prepared = prepare(run.data, run.tokenizer)
    while True:
        pace(prepared, words, int(threads))
        print("busy", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
