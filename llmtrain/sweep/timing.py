"""How long the cells of a plan take on this machine: some steps are timed at a few sizes, and the rest lies between."""

import heapq
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llmtrain.batch import split_batch
from llmtrain.callbacks.base import AfterStep
from llmtrain.callbacks.metrics import Metrics
from llmtrain.compose import run_from
from llmtrain.data.examples import RankRows, loader
from llmtrain.data.prepare import Prepared
from llmtrain.lit import Pretrain, Progress
from llmtrain.pretrain import scorer, work_of
from llmtrain.setup import set_up
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.count import Series
from llmtrain.sweep.neighbours import neighbours
from llmtrain.sweep.pool import Launch

STEPS, WARMUP = 12, 3
ROWS = 64  # of the held-out ones, that are timed for all


class Pace(NamedTuple):
    """Of a cell on one process, in seconds."""

    step: float  # of training, with all that goes on around it: the loader, Lightning, callbacks
    evaluation: float  # of all held-out rows


def pace(prepared: Prepared, words: Sequence[str], threads: int) -> Pace:
    """The median of a few steps through the trainer itself, and a share of the evaluation; ``words`` are train.py's."""
    run = run_from([*words, f"trainer.threads={threads}"])
    run.trainer.configure()
    setup = set_up(run, prepared)
    accumulate, micro_rows = split_batch(run)
    metrics = Metrics([], work_of(setup), every=run.trainer.log_every, horizon=STEPS + WARMUP)
    clock = _Clock()
    module = Pretrain(
        setup.task,
        optimizer=lambda task: run.optim.build(
            task, run.schedule, max(setup.horizon, STEPS + WARMUP), run.guard
        ),
        batch_rows=run.batch_rows,
        progress=Progress(),
        anomaly=lambda module: None,  # a rate that diverges takes as long
    )
    rows = RankRows(n_rows=(STEPS + WARMUP) * run.batch_rows, micro_rows=micro_rows, rank=0, world=1)
    trainer = run.trainer.lightning(accumulate=accumulate, callbacks=[metrics, clock])
    trainer.fit(module, loader(setup.examples(), rows, workers=0))
    held = next(iter(setup.held_out.values()))
    share = 1.0 if held.objective.together else min(1.0, ROWS / held.rows.n_rows)
    start = time.perf_counter()
    scorer(setup, micro_rows)(ROWS)
    evaluation = (time.perf_counter() - start) / share
    return Pace(statistics.median(np.diff(clock.ends)[WARMUP - 1 :]), evaluation)


class _Clock(AfterStep):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_step(self, trainer: Any, module: Pretrain) -> None:
        self.ends.append(time.perf_counter())


def timed(series: Series, cells: Sequence[Cell], launch: Launch, *, startup: float) -> dict[str, float]:
    """Expected seconds of each of ``cells``, of one series, on one worker: three widths are timed, log-linear between.

    ``startup`` is what every process takes before its first step. Beside what is timed, as many train as will.
    """
    by_width = {cell.d_model: cell for cell in cells}
    widths = sorted(by_width)
    chosen = sorted({widths[0], widths[len(widths) // 2], widths[-1]})
    with neighbours(by_width[chosen[len(chosen) // 2]].words, launch.threads, launch.beside):
        paces = [pace(series.prepared, by_width[width].words, launch.threads) for width in chosen]

    def at(width: int, seconds: Sequence[float]) -> float:
        return math.exp(np.interp(math.log(width), np.log(chosen), np.log(seconds)))

    steps, evaluations = zip(*paces, strict=True)
    return {c.id: startup + c.steps * at(c.d_model, steps) + at(c.d_model, evaluations) for c in cells}


def makespan(seconds: Sequence[float], workers: int) -> float:
    """How long all take, so many at a time, the longest first."""
    busy = [0.0] * workers
    for s in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + s)
    return max(busy, default=0.0)
