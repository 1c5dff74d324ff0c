"""Which learning rates are tried: for every series as many as for any other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.compare.cells import Entry
from llmtrain.compare.plan import Plan
from llmtrain.compare.settings import Rates
from llmtrain.config import to_plain
from llmtrain.run_folder import write_text
from llmtrain.sweep.edges import TUNING
from llmtrain.sweep.runner import Runner
from llmtrain.sweep.tuning import Best, Tried, at_rate, best_of


def tuned(plan: Plan, rates: Rates, runner: Runner) -> dict[str, Best]:
    """The best rate of every series at every budget, by the id of its trial; what was tried is in ``tuning.json``."""
    tried = {trial.id: dict[float, float]() for trial in plan.trials}
    while asked := _asked(plan, tried, rates):
        cells = {(trial.id, lr): at_rate(trial, lr) for trial, lr in asked}
        runner.run(list(cells.values()))
        for (trial, lr), cell in cells.items():
            tried[trial][lr] = runner.loss(cell)
    bests = {trial.id: best_of(trial, tried[trial.id]) for trial in plan.trials}
    value = [
        {"trial": t.id, "series": t.series, "budget": t.budget, "share": rates.share} | to_plain(bests[t.id])
        for t in plan.trials
    ]
    write_text(runner.folder / TUNING, json.dumps({"trials": value}, indent=1) + "\n")
    return bests


def read_tuning(folder: Path) -> list[dict[str, Any]]:
    """What ``tuned`` wrote; empty where nothing was tried yet."""
    path = folder / TUNING
    return json.loads(path.read_text(encoding="utf-8"))["trials"] if path.exists() else []


def _asked(plan: Plan, tried: Mapping[str, Tried], rates: Rates) -> list[tuple[Entry, float]]:
    """What is tried next, of all series at all budgets."""
    by_budget: dict[float, dict[str, Entry]] = {}
    for trial in plan.trials:
        by_budget.setdefault(trial.budget, {})[trial.id] = trial
    return [
        (trials[name], lr)
        for trials in by_budget.values()
        for name, lrs in next_rates({name: tried[name] for name in trials}, rates).items()
        for lr in lrs
    ]


def next_rates(tried: Mapping[str, Tried], rates: Rates) -> dict[str, list[float]]:
    """By series, what is tried next at one budget: always as many for each; nothing where there are enough."""
    n_tried = len(next(iter(tried.values())))
    if n_tried == 0:
        first = [rates.first * rates.factor ** (k - rates.rates // 2) for k in range(rates.rates)]
        return dict.fromkeys(tried, first)
    on_edge = [name for name, losses in tried.items() if _at(losses) in (0, n_tried - 1)]
    if rates.rates == 1 or not on_edge or n_tried >= rates.rates + rates.widen:
        return {}
    return {name: [_beyond(losses, rates.factor)] for name, losses in tried.items()}


def _at(losses: Tried) -> int:
    """The place of the best among the rates, in their order."""
    lrs = sorted(losses)
    return min(range(len(lrs)), key=lambda i: (losses[lrs[i]], lrs[i]))


def _beyond(losses: Tried, factor: float) -> float:
    """A rate further on the side of the better end, which is that of the best where it is an end."""
    low, high = min(losses), max(losses)
    return low / factor if losses[low] <= losses[high] else high * factor
