"""The plan of a sweep: its cells with what each costs, written down before any of them runs."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from llmtrain.config import config, to_plain
from llmtrain.errors import ConfigError
from llmtrain.nn.parametrization import Standard
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.count import Series
from llmtrain.sweep.kept import read_plan, write_plan
from llmtrain.sweep.memory import expected_bytes
from llmtrain.sweep.settings import Sweep, Tuning
from llmtrain.sweep.timing import makespan, timed
from llmtrain.sweep.trials import batch_trials, replicates
from llmtrain.sweep.tuning import corners

log = logging.getLogger(__name__)

# keys that decide how a sweep is answered or forecast, not what is asked
_HOW = ("launch", "report", "prior", "tuning.widen")
N_FIT = "parameters without the input embedding's table, the head once, active experts alone"


@config
class Plan:
    sweep: dict[str, Any]  # the question, as plain data
    cells: tuple[Cell, ...]  # that are fitted
    tuned: tuple[Cell, ...]  # at whose sizes and lengths learning rates are tried
    workers: int
    seconds: float | None  # expected, of all of it
    startup: float | None = None  # seconds before a process' first step
    settled: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # by series, words that trials have chosen
    precision_seconds: dict[str, float] = field(default_factory=dict)  # of a step of the middle cell
    batches: dict[int, tuple[Cell, ...]] = field(default_factory=dict)  # trials, by times the config's batch
    batch: int | None = None  # times the config's that they have chosen
    replicates: tuple[Cell, ...] = ()  # of the middle cell
    convention: str = N_FIT

    @property
    def hash(self) -> str:
        text = json.dumps([self.sweep, [c.id for c in self.cells]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        write_plan(self, self.hash, folder)


def grid_cells(sweep: Sweep, series: Mapping[str, Series]) -> list[Cell]:
    """The cells that are fitted, each solved for and counted. Raises ConfigError where no budget has one left."""
    cells = [series[t.series].cell(t, sweep.limits) for t in sweep.targets()]
    if sweep.limits.beyond == "drop":
        cells = [cell for cell in cells if not cell.notes]
    if not cells:
        raise ConfigError(
            f"sweep {sweep.name}: no cell keeps the limits (sweep.limits): give larger budgets, or "
            "sweep.limits.beyond=say"
        )
    return list({cell.id: cell for cell in cells}.values())  # two factors may come to one width


def make_plan(
    sweep: Sweep,
    series: Mapping[str, Series],
    *,
    workers: int,
    startup: float | None,
    batches: Mapping[int, tuple[Cell, ...]] | None = None,
) -> Plan:
    """The cells with what each costs; with ``startup`` also timed on this machine.

    ``batches`` are the trials of batches where they are done; else they are planned too.
    """
    cells = grid_cells(sweep, series)
    if startup is not None:
        costed = {cell.id: cell for one in series.values() for cell in _costed(sweep, one, cells, startup)}
        cells = [costed[cell.id] for cell in cells]
    for name in series if sweep.tuning.corners == 2 and sweep.tuning.rates > 1 else ():
        if isinstance(series[name].run.parametrization, Standard):
            log.warning(
                "%s: tuning.corners=2 gives all sizes the rate of the smallest, which the standard does "
                "not carry over widths: set parametrization=mup parametrization.base_width=%d, or tuning.corners=4",
                name, min(cell.d_model for cell in cells if cell.series == name),
            )  # fmt: skip
    if batches is None:
        batches = batch_trials(sweep, sweep.batch_test, series, cells) if sweep.batch_test else {}
    tuned = tuple(
        sweep.alone(corner)
        for name in series
        for corner in corners([cell for cell in cells if cell.series == name], sweep.tuning.corners)
        if sweep.tuning.rates > 1
    )
    again = replicates(sweep, cells)
    cells = sweep.arranged(cells)
    seconds = None
    if startup is not None:
        trials = [c for trial in batches.values() for c in trial] + [c for c in again if c.role is Role.TUNE]
        trunks = [c for c in cells if c.role is Role.TRUNK]  # their branches wait for all of them
        others = [c for c in cells if c.role is not Role.TRUNK]
        others += [*trials, *(c for c in tuned for _ in range(sweep.tuning.rates))]
        seconds = sum(makespan([c.seconds or 0.0 for c in each], workers) for each in (trunks, others))
        seconds += held_out_seconds(sweep, cells, workers)
    return Plan(
        sweep=to_plain(sweep),
        cells=tuple(cells),
        tuned=tuned,
        workers=workers,
        seconds=seconds,
        startup=startup,
        batches=dict(batches),
        replicates=again,
    )


def _costed(sweep: Sweep, series: Series, cells: Sequence[Cell], startup: float) -> list[Cell]:
    """The cells of one series with the time and the memory that they are expected to take."""
    mine = [cell for cell in cells if cell.series == series.name]
    seconds = timed(series, mine, sweep.launch, startup=startup)
    memory = expected_bytes(series, mine)
    return [dataclasses.replace(cell, seconds=seconds[cell.id], memory=memory[cell.id]) for cell in mine]


def tuning_of(sweep: Sweep, plan: Plan) -> Tuning:
    """The sweep's, its first rate moved with the batch that was chosen."""
    if sweep.batch_test is None or plan.batch is None:
        return sweep.tuning
    return dataclasses.replace(sweep.tuning, first=sweep.tuning.first * plan.batch**sweep.batch_test.power)


def held_out_seconds(sweep: Sweep, cells: Sequence[Cell], workers: int) -> float:
    """Of the runs that are predicted: by the FLOPs a second of the largest cells."""
    if sweep.held_out is None:
        return 0.0
    largest = max((c for c in cells if c.origin is None), key=lambda c: c.flops)
    each = (largest.seconds or 0.0) * sweep.held_out.flops / largest.flops
    return makespan([each] * len(sweep.held_out.seeds) * len(sweep.series), workers)


def kept_plan(sweep: Sweep) -> Plan | None:
    """The plan that is in the sweep's folder; ConfigError where it is another sweep's, with the differences."""
    return read_plan(Plan, sweep.folder, group="sweep", question=to_plain(sweep), free=_HOW)
