"""How long the cells of a plan take on this machine: some steps are timed at a few sizes, and the rest lies between."""

import heapq
import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from llmtrain.compose import run_from
from llmtrain.data.examples import RankRows, loader
from llmtrain.data.prepare import Prepared
from llmtrain.setup import set_up
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.count import Series
from llmtrain.trainer import autocast

STEPS, WARMUP = 6, 2


def seconds_a_step(prepared: Prepared, cell: Cell, threads: int) -> float:
    """Of a cell's training step on one process with ``threads``: forward, backward, optimiser; the median of a few."""
    run = run_from([*cell.words, f"trainer.threads={threads}"])
    run.trainer.configure()
    setup = set_up(run, prepared)
    optimizer = run.optim.build(setup.task, run.schedule, max(setup.horizon, STEPS + WARMUP))
    n_rows = (STEPS + WARMUP) * run.batch_rows
    rows = RankRows(n_rows=n_rows, micro_rows=run.batch_rows, rank=0, world=1)
    seconds = []
    for batch in loader(setup.examples(), rows, workers=0):
        start = time.perf_counter()

        def closure(batch: object = batch) -> torch.Tensor:
            optimizer.zero_grad()
            with autocast(run.trainer):
                loss: torch.Tensor = setup.task(batch).loss
            loss.backward()
            return loss

        optimizer.step(closure)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP:])


def timed(series: Series, cells: Sequence[Cell], *, threads: int, startup: float) -> dict[str, float]:
    """Expected seconds of each of ``cells``, of one series, on one worker: three widths are timed, log-linear between.

    ``startup`` is what every process takes before its first step.
    """
    by_width = {cell.d_model: cell for cell in cells}
    widths = sorted(by_width)
    chosen = sorted({widths[0], widths[len(widths) // 2], widths[-1]})
    x = [math.log(w) for w in chosen]
    y = [math.log(seconds_a_step(series.prepared, by_width[w], threads)) for w in chosen]
    return {c.id: startup + c.steps * math.exp(np.interp(math.log(c.d_model), x, y)) for c in cells}


def makespan(seconds: Sequence[float], workers: int) -> float:
    """How long all take, so many at a time, the longest first."""
    busy = [0.0] * workers
    for s in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + s)
    return max(busy, default=0.0)
