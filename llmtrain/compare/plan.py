"""The plan of a comparison: every run with what it costs, written down before any of them begins."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llmtrain.accounting import n_fit
from llmtrain.compare.cells import Entry
from llmtrain.compare.settings import Contest, SameFlops
from llmtrain.compare.size import Sized, sized
from llmtrain.config import config, to_plain
from llmtrain.errors import ConfigError
from llmtrain.sweep.cells import Role
from llmtrain.sweep.count import Series
from llmtrain.sweep.kept import read_plan, write_plan
from llmtrain.sweep.neighbours import neighbours
from llmtrain.sweep.timing import makespan, pace

# keys that decide how a comparison is answered, not what is trained
_HOW = ("launch", "report", "baseline", "untrained_seeds", "features", "generation", "wandb")


@config
class Plan:
    comparison: dict[str, Any]  # the question, as plain data
    cells: tuple[Entry, ...]
    trials: tuple[
        Entry, ...
    ]  # one for each series and budget: at its size and length learning rates are tried
    workers: int
    seconds: float | None  # expected, of all training

    @property
    def hash(self) -> str:
        text = json.dumps([self.comparison, [c.id for c in self.cells]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        write_plan(self, self.hash, folder)

    def of(self, cell: Entry) -> Entry:
        """The trial that a cell takes its learning rate from."""
        return next(t for t in self.trials if (t.series, t.budget) == (cell.series, cell.budget))


def make_plan(contest: Contest, series: Mapping[str, Series], *, workers: int, startup: float | None) -> Plan:
    """The runs of all series, sized, counted and, with ``startup``, timed on this machine; or ConfigError.

    ``startup`` is what every process takes before its first step, in seconds.
    """
    cells, trials = [], []
    for budget in contest.budgets:
        models = sized(contest, series, budget)
        seconds = _seconds_a_step(contest, models, budget, startup)
        wanted = _wanted(contest, models, seconds, budget)
        entry = partial(_entry, contest, budget=budget, target=wanted, startup=startup)
        for name, one in models.items():
            steps = _steps(contest, name, one, seconds[name], wanted)
            for seed in contest.seeds:
                cells.append(entry(one, Role.CELL, steps, seed, seconds[name]))
            if contest.rates.rates > 1:
                short, seed = max(1, round(contest.rates.share * steps)), contest.rates.seed
                trials.append(entry(one, Role.TUNE, short, seed, seconds[name]))
    total = None
    if startup is not None:
        tried = [t.seconds or 0.0 for t in trials for _ in range(contest.rates.rates)]
        total = makespan(tried, workers) + makespan([c.seconds or 0.0 for c in cells], workers)
    return Plan(
        comparison=to_plain(contest),
        cells=tuple(cells),
        trials=tuple(trials),
        workers=workers,
        seconds=total,
    )


def kept_plan(contest: Contest) -> Plan | None:
    """The plan that is in the comparison's folder; ConfigError where it is another one's, with the differences."""
    return read_plan(Plan, contest.folder, group="comparison", question=to_plain(contest), free=_HOW)


def _seconds_a_step(
    contest: Contest, models: Mapping[str, Sized], budget: float, startup: float | None
) -> dict[str, float | None]:
    """Of each series, beside as many others as will train at once; none where neither plan nor match asks for it."""
    if startup is None and contest.match != "time":
        return dict.fromkeys(models)
    entry = partial(_entry, contest, budget=budget, target=budget, startup=None)
    words = {name: entry(one, Role.TUNE, 1, contest.seeds[0], 0.0).words for name, one in models.items()}
    launch = contest.launch
    with neighbours(words[contest.baseline], launch.threads, launch.beside):
        return {
            name: pace(one.series.prepared, words[name], launch.threads).step for name, one in models.items()
        }


def _per_step(contest: Contest, one: Sized, seconds: float | None) -> float | int:
    """What a step adds to what is matched."""
    if contest.match == "time":
        assert seconds is not None, "to match time, steps are timed"
        return seconds
    rows = one.series.run.batch_rows
    return rows * (one.counted.flops.model if contest.match == "flops" else one.series.raw_per_row)


def _wanted(
    contest: Contest, models: Mapping[str, Sized], seconds: Mapping[str, float | None], budget: float
) -> float:
    """What every run of the budget shall come to, of what is matched: what a run of the baseline comes to."""
    if contest.match == "flops":
        return budget
    baseline = models[contest.baseline]
    steps = budget / (baseline.series.run.batch_rows * baseline.counted.flops.model)
    return steps * _per_step(contest, baseline, seconds[contest.baseline])


def _steps(contest: Contest, name: str, one: Sized, seconds: float | None, wanted: float) -> int:
    """As many as come nearest to what is wanted. Raises ConfigError where a whole step is too much for that."""
    per_step = _per_step(contest, one, seconds)
    steps = round(wanted / per_step)
    if steps < 1 or abs(steps * per_step / wanted - 1) > contest.tolerance:
        raise ConfigError(
            f"series {name}: {wanted:.4g} is {wanted / per_step:.1f} steps of {one.series.run.batch_rows} rows, and no "
            f"whole number of them is within {contest.tolerance:.1%}: give a larger budget or a smaller batch_rows"
        )
    return steps


def _entry(
    contest: Contest,
    one: Sized,
    role: Role,
    steps: int,
    seed: int,
    seconds: float | None,  # of a step
    *,
    budget: float,
    target: float,
    startup: float | None,
) -> Entry:
    series, rows, found = one.series, one.series.run.batch_rows, one.counted
    tokens = round(steps * rows * series.raw_per_row)
    epochs = tokens / series.n_tokens
    short = f"{budget:g}".replace("+", "")
    return Entry(
        id=f"{series.name}-{short}" + (f"-seed{seed}" if role is Role.CELL else ""),
        role=role,
        series=series.name,
        seed=seed,
        n=n_fit(found.size),
        d_model=one.d_model,
        tokens=tokens,
        flops=steps * rows * found.flops.model,
        steps=steps,
        batch_rows=rows,
        lr=contest.rates.first if contest.rates.rates == 1 else None,
        epochs=epochs,
        seconds=None if seconds is None or startup is None else startup + steps * seconds,
        notes=(f"{epochs:.2f} epochs",) if epochs > 1 else (),
        words=(
            *series.words,
            f"model.n_layers={series.depth}",
            f"model.d_model={one.d_model}",
            f"steps={steps}",
            f"seed={seed}",
        ),
        budget=budget,
        target=target,
        matched=steps * _per_step(contest, one, seconds),
        n_total=found.size.total,
        n_active=found.size.active,
        flops_per_token=one.flops_per_token,
    )


def with_rates(plan: Plan, rates: Mapping[str, float]) -> list[Entry]:
    """The cells with the learning rates that were found; ``rates`` by the id of the trial."""
    return [
        dataclasses.replace(cell, lr=rates[plan.of(cell).id]) if plan.trials else cell for cell in plan.cells
    ]


def said_of_match(contest: Contest) -> str:
    """What all runs have equal, in words."""
    what = {
        "flops": "the model FLOPs of a run",
        "tokens": "the raw tokens of a run",
        "time": "the seconds of training of a run, by the steps timed in the plan",
    }[contest.match]
    size = contest.size
    if isinstance(size, SameFlops):
        return (
            f"{what} (within {contest.tolerance:.0%}), at equal model FLOPs a raw token (within {size.within:.0%}) and "
            f"{contest.depth} layers"
        )
    return f"{what} (within {contest.tolerance:.0%}), each series at its own best size"
