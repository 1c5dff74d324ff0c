"""From a question to its answer: plan, learning rates, cells, fit, prediction, and the check of the prediction."""

from collections.abc import Sequence

from llmtrain.callbacks.display import preparing
from llmtrain.data.prepare import Progress
from llmtrain.errors import ConfigError
from llmtrain.lock import RunLock
from llmtrain.sweep.answer import check_branches, fitted, predicted, reported, verified
from llmtrain.sweep.cells import FITTED, Cell, Role
from llmtrain.sweep.conduct import Conductor, with_rates
from llmtrain.sweep.count import Series
from llmtrain.sweep.forecast import forecast
from llmtrain.sweep.plan import Plan, describe, kept_plan, make_plan
from llmtrain.sweep.pool import Pool
from llmtrain.sweep.settings import Sweep
from llmtrain.sweep.status import status_of, table


def series_of(sweep: Sweep, progress: Progress | None) -> dict[str, Series]:
    return {
        name: Series(name, [*sweep.common, *words], depth=sweep.depth, progress=progress)
        for name, words in sweep.series.items()
    }


def pool_of(sweep: Sweep) -> Pool:
    return sweep.launch.pool(sweep.folder)


def planned(sweep: Sweep, *, startup: float) -> Plan:
    """The plan that is in the sweep's folder, or a new one, which is written there; printed either way.

    ``startup`` is what every process takes before its first step, in seconds.
    """
    plan = kept_plan(sweep)
    if plan is None:
        with preparing(show=True) as progress:
            series = series_of(sweep, progress)
        plan = make_plan(sweep, series, workers=pool_of(sweep).workers, startup=startup)
        plan.write(sweep.folder)
    print(describe(plan, sweep))
    for name in sweep.series:
        for line in precision(sweep, [cell for cell in plan.cells if cell.series == name]):
            print(line if len(sweep.series) == 1 else f"{name}: {line}")
    return plan


def precision(sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
    """What the plan promises of its prediction, in words; nothing where nothing is held out."""
    fitted = [cell for cell in cells if cell.role in FITTED]
    if sweep.held_out is None:
        return []
    found = forecast(fitted, at=sweep.held_out.flops, method=sweep.fit, prior=sweep.prior)
    if found is None:
        return ["precision: no simulated sweep could be fitted: give more sizes and budgets"]
    return [f"precision: {found}", *(f"warning: {text}" for text in found.warnings)]


def answer(sweep: Sweep, plan: Plan, *, force: bool, pool: Pool | None = None) -> None:
    """Run the plan to its end, from where an earlier start came to: what is finished is not run again."""
    with RunLock(sweep.folder):
        conductor = Conductor(sweep, pool or pool_of(sweep))
        rules = conductor.tuned(plan)
        cells = with_rates(plan.cells, rules)
        conductor.run([cell for cell in cells if cell.role is Role.TRUNK])
        conductor.run([cell for cell in cells if cell.role is not Role.TRUNK])
        check_branches(cells, conductor)
        fits, studies = fitted(sweep, force=force)
        if sweep.held_out is not None:
            with preparing(show=False) as progress:
                series = series_of(sweep, progress)
            conductor.run(predicted(sweep, sweep.held_out, series, rules, fits))
            verified(sweep, sweep.held_out, fits)
        reported(sweep, studies)


def status(sweep: Sweep) -> str:
    """How far each cell is of those that are fitted."""
    plan = kept_plan(sweep)
    if plan is None:
        raise ConfigError(f"{sweep.folder} has no plan yet: --dry-run makes one")
    return table([status_of(cell, sweep.folder) for cell in plan.cells])
