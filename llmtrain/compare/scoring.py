"""Every contestant put to the yardsticks, so many at a time; what was measured before is not measured again."""

import functools
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from llmtrain.callbacks.display import duration
from llmtrain.compare.contestants import Contestant
from llmtrain.compare.saved import Whose
from llmtrain.compare.scores import Scores, path_of, read_scores, write_scores
from llmtrain.compare.settings import Contest
from llmtrain.compare.yardsticks import Yardsticks
from llmtrain.compose import build
from llmtrain.config import to_plain
from llmtrain.errors import StorageError
from llmtrain.evaluation.base import Measured
from llmtrain.launch.processes import tied_to
from llmtrain.sweep.pool import Local

_VERSION = 1  # of the yardsticks: a change of what they yield measures every model anew


def executor_of(contest: Contest) -> Executor:
    """Processes that measure one contestant at a time, and end with this one."""
    asked = (
        contest.launch.workers if isinstance(contest.launch, Local) else None
    )  # scores are always made here
    workers = asked or max(1, (os.cpu_count() or 1) // contest.launch.threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what takes seconds to import is imported once
    return ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(contest.launch.threads,))


def score(contest: Contest, those: Sequence[Contestant], executor: Executor, asked: str) -> dict[str, Scores]:
    """The scores of all contestants by their ids; each is in a file of its own as soon as it is there.

    ``asked`` is a hash of what they are asked: what was measured of something else is measured again.
    """
    keys = {one.id: _key(contest, one, asked) for one in those}
    missing = [one for one in those if read_scores(path_of(contest.folder, one.id), keys[one.id]) is None]
    question = json.dumps(to_plain(contest))
    with executor:
        waiting = {executor.submit(measure, question, one, keys[one.id]): one.id for one in missing}
        try:
            for left, future in enumerate(as_completed(waiting), 1 - len(waiting)):
                try:
                    seconds = future.result()
                except BrokenProcessPool:
                    raise StorageError(
                        f"a process that measured {waiting[future]} was killed, perhaps for want of memory: "
                        "what is measured is kept, and the same command goes on; with comparison.launch.workers=1 it "
                        "takes less"
                    ) from None
                print(f"{waiting[future]}: measured, {duration(seconds)} ({-left} left)", flush=True)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    found = {one.id: read_scores(path_of(contest.folder, one.id), keys[one.id]) for one in those}
    return {name: scores for name, scores in found.items() if scores is not None}


def measure(question: str, contestant: Contestant, key: str) -> float:
    """Put one contestant to all yardsticks and write what they say; the seconds that it took.

    ``question`` is the comparison as JSON.
    """
    started = time.monotonic()
    contest, yardsticks = _made(question)
    measured: list[tuple[Whose, Measured]]
    features = None
    if contestant.role == "baseline":
        measured = yardsticks.baselines(contestant.cell.d_model)
    else:
        subject = contestant.subject(contest.folder)
        measured = [(contestant.whose, one) for one in yardsticks.of(subject)]
        features = yardsticks.features(subject)
    seconds = time.monotonic() - started
    write_scores(path_of(contest.folder, contestant.id), Scores(key, seconds, measured, features))
    return seconds


@functools.lru_cache(maxsize=1)
def _made(question: str) -> tuple[Contest, Yardsticks]:
    """Kept for all contestants that this process measures."""
    contest: Contest = build(json.loads(question))
    return contest, Yardsticks(contest)


def _begin(threads: int) -> None:
    tied_to(os.getppid())()
    from sklearn import linear_model  # noqa: F401  its BLAS is limited only if it is loaded
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)


def _key(contest: Contest, contestant: Contestant, asked: str) -> str:
    """A hash of the model, of what it is asked and of how that is measured."""
    record = contestant.cell.run(contest.folder) / "record.json"
    made_of: list[Any] = [
        _VERSION,
        contestant.role,
        record.read_text(encoding="utf-8") if contestant.role == "trained" else contestant.cell.words,
        asked,
        *(to_plain(how) for how in (contest.features, contest.generation)),
    ]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
