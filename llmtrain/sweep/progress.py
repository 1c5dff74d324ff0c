"""All cells of a sweep that are known so far, with how far each is; on a terminal, live while the sweep runs."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from llmtrain.errors import ConfigError
from llmtrain.lock import in_use
from llmtrain.sweep.answer import held_out_cells
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.conduct import rules_of, with_rates
from llmtrain.sweep.plan import Plan, kept_plan, tuning_of
from llmtrain.sweep.settings import Sweep, Tuning
from llmtrain.sweep.status import State, Status, loss_of, status_of, table
from llmtrain.sweep.tuning import at_rate, next_rates

LOOK = 2.0  # seconds between two looks
_ORDER = (State.STARTED, State.FAILED, State.DIVERGED, State.WAITING, State.FINISHED)  # what changes first


def known_cells(sweep: Sweep, plan: Plan) -> list[Cell]:
    """In the order in which they are run; of what depends on results that are not there yet, nothing."""
    batches = [cell for trial in plan.batches.values() for cell in trial]
    tried = [cell for corner in plan.tuned for cell in _tried(tuning_of(sweep, plan), corner, sweep.folder)]
    more = [cell for cell in plan.replicates if cell.role is Role.TUNE]
    ruled = with_rates([*more, *plan.cells], rules_of(sweep.folder))
    return [*batches, *tried, *ruled, *held_out_cells(sweep.folder)]


def _tried(tuning: Tuning, corner: Cell, folder: Path) -> list[Cell]:
    """A corner's cells at each rate that was tried or comes next."""
    found: list[Cell] = []
    tried: dict[float, float] = {}
    while rates := next_rates(tried, tuning):
        found += [at_rate(corner, lr) for lr in rates]
        losses = [loss_of(status_of(cell, folder)) for cell in found[-len(rates) :]]
        if any(loss is None for loss in losses):
            break
        tried |= {lr: math.inf if loss is None else loss for lr, loss in zip(rates, losses, strict=True)}
    return found


def statuses(sweep: Sweep) -> list[Status]:
    """Raises ConfigError where there is no plan yet."""
    plan = kept_plan(sweep)
    if plan is None:
        raise ConfigError(f"{sweep.folder} has no plan yet: --dry-run makes one")
    return [status_of(cell, sweep.folder) for cell in known_cells(sweep, plan)]


def status(sweep: Sweep) -> str:
    """How far each cell is."""
    return table(statuses(sweep)) + _to_come(sweep)


def _to_come(sweep: Sweep) -> str:
    if sweep.held_out is None or held_out_cells(sweep.folder):
        return ""
    number = len(sweep.held_out.seeds) * len(sweep.series)
    return f"\n{number} held-out runs follow, once the law is fitted"


def watch(sweep: Sweep) -> None:
    """The table on a terminal, again and again while a process runs the sweep; then once more, whole."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if in_use(sweep.folder):
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while in_use(sweep.folder):
                shown = table(_first(statuses(sweep), console.height - 4)) + _to_come(sweep)
                live.update(Text(shown, no_wrap=True, overflow="ellipsis"), refresh=True)
                time.sleep(LOOK)
    print(status(sweep))


def _first(found: Sequence[Status], rows: int) -> list[Status]:
    """As many as a screen has room for: of cells that wait or are done, fewer are worth a look."""
    return sorted(found, key=lambda s: _ORDER.index(s.state))[: max(1, rows)]
