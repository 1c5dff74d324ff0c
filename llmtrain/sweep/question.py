"""From a question to its answer: plan, trials, learning rates, cells, fit, prediction, and its check."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmtrain.callbacks.display import preparing
from llmtrain.checkpoint.folders import of_step
from llmtrain.data.prepare import Progress
from llmtrain.errors import UserError
from llmtrain.lock import RunLock
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.resample import how_to_resample, units_wanted
from llmtrain.sweep.answer import check_branches, fitted, predicted, reported, verified
from llmtrain.sweep.board import grouped, publish
from llmtrain.sweep.cells import FITTED, Cell, Role
from llmtrain.sweep.conduct import Conductor, with_rates
from llmtrain.sweep.count import Series
from llmtrain.sweep.edges import check_edges
from llmtrain.sweep.forecast import forecast
from llmtrain.sweep.plan import Plan, grid_cells, kept_plan, make_plan
from llmtrain.sweep.pool import Pool
from llmtrain.sweep.runner import CellsFailed
from llmtrain.sweep.settings import HeldOut, Sweep
from llmtrain.sweep.shown import describe
from llmtrain.sweep.trials import best_batch, faster, measured_noise, step_seconds, write_batch, write_noise
from llmtrain.sweep.tuning import Rule


def series_of(
    sweep: Sweep, settled: Mapping[str, Sequence[str]], progress: Progress | None
) -> dict[str, Series]:
    """``settled``: of each series, the words that trials have chosen."""
    return {
        name: Series(
            name, [*sweep.common, *words, *settled.get(name, ())], depth=sweep.depth, progress=progress
        )
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
        plan = _new_plan(sweep, startup)
        plan.write(sweep.folder)
    print(describe(plan, sweep))
    _print_precision(sweep, plan)
    return plan


def _new_plan(sweep: Sweep, startup: float) -> Plan:
    """With one precision for all cells: where the machine may choose, the faster of two."""
    with preparing(show=True) as progress:
        series = series_of(sweep, {}, progress)
    seconds = step_seconds(series, grid_cells(sweep, series), sweep.launch.threads)
    settled = {name: grouped(sweep, one.run.logger) for name, one in series.items()}
    for name, one in series.items():
        if one.run.trainer.precision == "auto":
            settled[name] += (f"trainer.precision={faster(seconds)}",)
    if any(settled.values()):
        series = series_of(sweep, settled, None)
    plan = make_plan(sweep, series, workers=pool_of(sweep).workers, startup=startup)
    return dataclasses.replace(plan, settled=settled, precision_seconds=seconds)


def precision(sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
    """What the plan promises of its prediction, in words; nothing where nothing is held out."""
    fitted = [cell for cell in cells if cell.role in FITTED]
    if sweep.held_out is None:
        return []
    if sweep.fit.form != "chinchilla":
        return [f"precision: none is forecast for form {sweep.fit.form}, only for chinchilla"]
    trunks = {(cell.n, cell.seed) for cell in fitted if cell.role is Role.BRANCH}
    free = len(FORMS[sweep.fit.form].parameters) - len(sweep.fit.fix)
    if trunks and how_to_resample(len(trunks), free, len(sweep.seeds), shared=True) == "withheld":
        return [
            f"precision: none is promised, since {len(trunks)} trunks do not tell how trunks scatter and the fit "
            f"will state no interval; {units_wanted(free)} trunks or three seeds would"
        ]
    noise = measured_noise(sweep.folder)
    prior = sweep.prior if noise is None else dataclasses.replace(sweep.prior, seed_sd=noise)
    found = forecast(fitted, at=sweep.held_out.flops, method=sweep.fit, prior=prior)
    if found is None:
        return ["precision: no simulated sweep could be fitted: give more sizes and budgets"]
    whence = "assumed" if noise is None else "measured"
    said = f"precision: {found} (noise of seeds {prior.seed_sd:.2%}, {whence})"
    return [said, *(f"warning: {text}" for text in found.warnings)]


def _print_precision(sweep: Sweep, plan: Plan) -> None:
    for name in sweep.series:
        for line in precision(sweep, [cell for cell in plan.cells if cell.series == name]):
            print(line if len(sweep.series) == 1 else f"{name}: {line}")


def answer(sweep: Sweep, plan: Plan, *, force: bool, pool: Pool | None = None) -> None:
    """Run the plan to its end, from where an earlier start came to: what is finished is not run again."""
    with RunLock(sweep.folder):
        conductor = Conductor(sweep, pool or pool_of(sweep))
        plan = with_batch(sweep, plan, conductor)
        rules = conductor.tuned(plan)
        check_edges(sweep.folder, force=force)  # before the cells, which cost most
        measure_noise(sweep, plan, rules, conductor)
        cells = with_rates(plan.cells, rules)
        conductor.run([cell for cell in cells if cell.role is Role.TRUNK])
        conductor.run(with_trunks([cell for cell in cells if cell.role is not Role.TRUNK], sweep.folder))
        check_branches(cells, conductor)
        fits, studies, failed = fitted(sweep, force=force)
        if sweep.held_out is not None and fits:
            with preparing(show=False) as progress:
                series = series_of(sweep, plan.settled, progress)
            failed |= held_out(sweep, sweep.held_out, series, rules, fits, conductor)
        reported(sweep, studies)
        publish(sweep, plan, studies)
        if failed:
            first, *others = failed.values()
            for error in others:
                print(error)
            raise first


def held_out(
    sweep: Sweep,
    held: HeldOut,
    series: Mapping[str, Series],
    rules: Mapping[str, Rule | None],
    fits: Mapping[str, Path],
    conductor: Conductor,
) -> dict[str, UserError]:
    """Predict, train and verify; by series, why one is not verified."""
    cells, unpredicted = predicted(sweep, held, series, rules, fits)
    stopped: CellsFailed | None = None
    try:
        conductor.run(cells)
    except CellsFailed as error:  # those that were trained are verified all the same
        stopped = error
    predictions = {name: folder for name, folder in fits.items() if name not in unpredicted}
    lost = verified(sweep, held, predictions, cells)
    return unpredicted | {name: stopped or error for name, error in lost.items()}


def with_trunks(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """All but the branches of a trunk that diverged before they would begin; those are named."""
    found = []
    for cell in cells:
        trunk, _, step = (cell.origin or "").partition("@")
        run = folder / Role.TRUNK.folder / trunk
        if cell.origin is None or cell.run(folder).exists() or of_step(run, int(step)).exists():
            found.append(cell)
        else:
            print(f"{cell.id}: not trained, since its trunk diverged before step {int(step):,}")
    return found


def with_batch(sweep: Sweep, plan: Plan, conductor: Conductor) -> Plan:
    """The plan at the batch that its trials choose; itself where there are none, or they chose in an earlier start."""
    if not plan.batches or plan.batch is not None:
        return plan
    conductor.run([cell for trial in plan.batches.values() for cell in trial])
    losses = {
        factor: {name: [conductor.loss(c) for c in trial if c.series == name] for name in sweep.series}
        for factor, trial in plan.batches.items()
    }
    chosen = best_batch(losses, sweep.prior.seed_sd)
    write_batch(sweep.folder, losses, chosen, sweep.prior.seed_sd)
    settled = {name: list(plan.settled.get(name, ())) for name in sweep.series}
    for cell in {c.series: c for c in plan.batches[chosen]}.values() if chosen > 1 else ():
        settled[cell.series].append(f"batch_rows={cell.batch_rows}")
        if sweep.tuning.rates == 1:
            settled[cell.series].append(f"optim.lr={cell.lr:.6g}")
    words = {name: tuple(each) for name, each in settled.items()}
    grid = plan
    if chosen > 1:
        series = series_of(sweep, words, None)
        grid = make_plan(sweep, series, workers=plan.workers, startup=plan.startup, batches=plan.batches)
    plan = dataclasses.replace(grid, settled=words, precision_seconds=plan.precision_seconds, batch=chosen)
    plan.write(sweep.folder)
    print(describe(plan, sweep))
    return plan


def measure_noise(sweep: Sweep, plan: Plan, rules: Mapping[str, Rule | None], conductor: Conductor) -> None:
    """Train the replicates, where there are any, and say what the plan promises with their noise."""
    if not plan.replicates:
        return
    cells = with_rates(plan.replicates, rules)
    conductor.run(cells)
    write_noise(
        sweep.folder, {name: [conductor.loss(c) for c in cells if c.series == name] for name in sweep.series}
    )
    _print_precision(sweep, plan)
