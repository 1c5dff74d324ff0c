"""Errors of a yardstick as power laws of compute, and from them how much compute one series saves or costs."""

from collections.abc import Iterator

import numpy as np

from llmtrain.compare.results import Estimate, Growth, Multiplier, Result
from llmtrain.compare.saved import Comparison
from llmtrain.errors import DataError, NumbersError
from llmtrain.scaling import Method, fit
from llmtrain.scaling.compare import multipliers
from llmtrain.scaling.fit import Fit
from llmtrain.scaling.flops import SIX_ND
from llmtrain.scaling.points import About as Source
from llmtrain.scaling.points import Points

LEAST_BUDGETS = 6  # three parameters on fewer are no law


def best(result: Result) -> float | None:
    """The ceiling; of what is lower the better, as bits a byte, 0 where none is known."""
    return 0.0 if result.ceiling is None and result.better == "lower" else result.ceiling


def between(result: Result) -> bool:
    """Whether its values lie between a chance and a best value that are known."""
    return result.chance is not None and best(result) is not None


def share(result: Result, value: float) -> float:
    """The error: how much of the way from the best value (0) to chance (1) is left."""
    ceiling = best(result)
    assert ceiling is not None and result.chance is not None
    return (ceiling - value) / (ceiling - result.chance)


def error(result: Result, found: Estimate) -> Estimate:
    if found.lo is None or found.hi is None:
        return Estimate(value=share(result, found.value))
    lo, hi = sorted((share(result, found.lo), share(result, found.hi)))
    return Estimate(value=share(result, found.value), lo=lo, hi=hi)


def spent(comparison: Comparison, series: str, budget: int) -> float:
    """Model FLOPs of a cell, the mean over the seeds that finished."""
    cells = [
        cell.flops_model
        for cell in comparison.about.cells
        if (cell.series, cell.budget, cell.status) == (series, budget, "finished")
    ]
    return float(np.mean(cells))


def laws(comparison: Comparison, level: float) -> Iterator[Growth]:
    """Of every series on every main metric with chance and ceiling; nothing under 6 budgets."""
    main = [one for one in comparison.results if one.main and between(one)]
    for yardstick, metric in dict.fromkeys((one.yardstick, one.metric) for one in main):
        results = [one for one in main if (one.yardstick, one.metric) == (yardstick, metric)]
        if len(results) < LEAST_BUDGETS:
            continue
        names = dict.fromkeys(s.series for one in results for s in one.standings if s.common)
        fits = {name: found for name in names if (found := _fit(comparison, results, name, level))}
        base = fits.get(comparison.about.baseline)
        for name, found in fits.items():
            yield Growth(
                yardstick=yardstick,
                metric=metric,
                series=name,
                exponent=_exponent(found),
                multipliers=() if base is None or found is base else _multipliers(base, found),
            )


def _fit(comparison: Comparison, results: list[Result], series: str, level: float) -> Fit | None:
    """Of single cells; none where too few budgets have errors that a power can follow."""
    by_budget = {one.budget: one for one in results}
    first = results[0]
    rows = [
        row
        for row in comparison.rows
        if (row.series, row.role, row.yardstick, row.metric, row.split)
        == (series, "trained", first.yardstick, first.metric, first.split)
        and row.budget in by_budget
        and share(by_budget[row.budget], row.value) > 0
    ]
    if len({row.budget for row in rows}) < LEAST_BUDGETS:
        return None
    points = Points(
        x={"c": np.array([spent(comparison, series, row.budget or 0) for row in rows])},
        loss=np.array([share(by_budget[row.budget or 0], row.value) for row in rows]),
        weight=np.ones(len(rows)),
        run=np.array([f"{row.budget} {row.seed}" for row in rows]),
        unit=np.arange(len(rows)),
        unit_name="run",
        convention=SIX_ND,
        about=Source(source=comparison.about.name, sha256="", series=series, score="error"),
    )
    try:
        return fit(points, Method(form="power", bootstrap=0, level=level))
    except (DataError, NumbersError):
        return None  # errors that no power law follows: the figure shows them all the same


def _exponent(found: Fit) -> Estimate:
    alpha = found.parameters["alpha"]
    return Estimate(value=alpha.value, se=alpha.se, lo=alpha.lo, hi=alpha.hi)


def _multipliers(base: Fit, found: Fit) -> tuple[Multiplier, ...]:
    return tuple(
        Multiplier(error=one.loss, value=one.value, lo=one.lo, hi=one.hi) for one in multipliers(base, found)
    )
