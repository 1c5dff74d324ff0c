"""The plan of a sweep: its cells with what each costs, written down before any of them runs."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain.callbacks.display import duration
from llmtrain.config import config, to_plain
from llmtrain.errors import ConfigError
from llmtrain.nn.parametrization import Standard
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.count import Series
from llmtrain.sweep.kept import read_plan, write_plan
from llmtrain.sweep.settings import Sweep
from llmtrain.sweep.timing import makespan, timed
from llmtrain.sweep.tuning import corners

log = logging.getLogger(__name__)

_HOW = ("launch", "report")  # keys that decide how a sweep is answered, not what is asked
N_FIT = "parameters without the input embedding's table, the head once, active experts alone"


@config
class Plan:
    sweep: dict[str, Any]  # the question, as plain data
    cells: tuple[Cell, ...]  # that are fitted
    tuned: tuple[Cell, ...]  # at whose sizes and lengths learning rates are tried
    workers: int
    seconds: float | None  # expected, of all of it
    convention: str = N_FIT

    @property
    def hash(self) -> str:
        text = json.dumps([self.sweep, [c.id for c in self.cells]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        write_plan(self, self.hash, folder)


def make_plan(sweep: Sweep, series: dict[str, Series], *, workers: int, startup: float | None) -> Plan:
    """The cells, each solved for and counted; with ``startup`` also timed on this machine.

    Raises ConfigError where a budget has no cell left.
    """
    cells = [series[t.series].cell(t, sweep.limits) for t in sweep.targets()]
    if sweep.limits.beyond == "drop":
        cells = [cell for cell in cells if not cell.notes]
    if not cells:
        raise ConfigError(
            f"sweep {sweep.name}: no cell keeps the limits (sweep.limits): give larger budgets, or "
            "sweep.limits.beyond=say"
        )
    cells = list({cell.id: cell for cell in cells}.values())  # two factors may come to one width
    if startup is not None:
        for name, one in series.items():
            mine = [cell for cell in cells if cell.series == name]
            expected = timed(one, mine, threads=sweep.launch.threads, startup=startup)
            cells = [
                dataclasses.replace(cell, seconds=expected[cell.id]) if cell.id in expected else cell
                for cell in cells
            ]
    for name in series if sweep.tuning.corners == 2 and sweep.tuning.rates > 1 else ():
        if isinstance(series[name].run.parametrization, Standard):
            log.warning(
                "%s: tuning.corners=2 gives all sizes the rate of the smallest, which the standard does "
                "not carry over widths: set parametrization=mup parametrization.base_width=%d, or tuning.corners=4",
                name, min(cell.d_model for cell in cells if cell.series == name),
            )  # fmt: skip
    tuned = tuple(
        corner
        for name in series
        for corner in corners([cell for cell in cells if cell.series == name], sweep.tuning.corners)
        if sweep.tuning.rates > 1
    )
    cells = sweep.arranged(cells)
    seconds = None
    if startup is not None:
        each = [c.seconds or 0.0 for c in cells] + [
            c.seconds or 0.0 for c in tuned for _ in range(sweep.tuning.rates)
        ]
        seconds = makespan(each, workers) + held_out_seconds(sweep, cells, workers)
    return Plan(sweep=to_plain(sweep), cells=tuple(cells), tuned=tuned, workers=workers, seconds=seconds)


def held_out_seconds(sweep: Sweep, cells: Sequence[Cell], workers: int) -> float:
    """Of the runs that are predicted: by the FLOPs a second of the largest cells."""
    if sweep.held_out is None:
        return 0.0
    largest = max(cells, key=lambda c: c.flops)
    each = (largest.seconds or 0.0) * sweep.held_out.flops / largest.flops
    return makespan([each] * len(sweep.held_out.seeds) * len(sweep.series), workers)


def kept_plan(sweep: Sweep) -> Plan | None:
    """The plan that is in the sweep's folder; ConfigError where it is another sweep's, with the differences."""
    return read_plan(Plan, sweep.folder, group="sweep", question=to_plain(sweep), free=_HOW)


def describe(plan: Plan, sweep: Sweep) -> str:
    """A table of the cells, what tuning adds, and the time of all."""
    head = f"{'cell':<44} {'N':>11} {'D':>13} {'FLOPs':>9} {'steps':>7} {'batch':>5} {'D/N':>6} {'time':>7}"
    lines = [f"N: {plan.convention}", "", head]
    for cell in sorted(plan.cells, key=lambda c: (c.series, c.flops, c.n, c.seed)):
        time = "" if cell.seconds is None else duration(cell.seconds)
        lines.append(
            f"{cell.id:<44} {cell.n:>11,} {cell.tokens:>13,} {cell.flops:>9.2e} {cell.steps:>7,} {cell.batch_rows:>5} "
            f"{cell.tokens / cell.n:>6.1f} {time:>7}" + "".join(f"  ! {note}" for note in cell.notes)
        )
    trained = sum(c.flops for c in plan.cells)
    lines += ["", f"{len(plan.cells)} cells, {trained:.3g} model FLOPs"]
    if plan.tuned:
        cost = sweep.tuning.rates * sum(c.flops for c in plan.tuned)
        lines.append(
            f"tuning: {sweep.tuning.rates} learning rates at {len(plan.tuned)} corners, at least "
            f"{len(plan.tuned) * sweep.tuning.rates} runs, {cost:.3g} FLOPs ({cost / trained:.0%} of the cells')"
        )
    if sweep.held_out:
        n_runs = len(sweep.held_out.seeds) * len(sweep.series)
        lines.append(
            f"held out: {n_runs} runs of {sweep.held_out.flops:.3g} FLOPs, predicted before they are trained"
        )
    if plan.seconds is not None:
        lines.append(f"expected time: {duration(plan.seconds)} with {plan.workers} at a time")
    return "\n".join(lines)
