"""Loss against size at each budget, loss against compute, and the optimal size by compute."""

import numpy as np

from llmtrain.scaling.best import Best, best_along
from llmtrain.scaling.bins import undominated
from llmtrain.scaling.budgets import budgets
from llmtrain.scaling.curve import values_on
from llmtrain.scaling.figures.canvas import (
    LIGHT,
    Drawn,
    budget_colours,
    colours,
    conventions,
    label_of,
    log_axes,
    loss_label,
    new,
    plain,
    size_label,
    titled,
)
from llmtrain.scaling.fit import Fit
from llmtrain.scaling.frontier import has_optimum
from llmtrain.scaling.intervals import Interval
from llmtrain.scaling.study import Judged

_MOST_BUDGETS = 16  # of curves that can be told apart
_BEYOND = 10.0  # times the FLOPs of the largest run: how far lines are drawn


def isoflop(study: list[Judged]) -> Drawn | None:
    """Of series whose runs share budgets; the curve is the one whose minimum counts, or the law's."""
    shown = [one for one in study if _has_curves(one.fit)]
    if not shown:
        return None
    figure, axes = new(len(shown), width=max(7.0, 4.6 * len(shown)))
    for axis, one in zip(axes, shown, strict=True):
        _curves(axis, one.fit)
    fit = shown[0].fit
    by = (
        f"{fit.optima.found[0].how} curves and their minima"
        if fit.optima
        else "the law at each budget, its minimum"
    )
    caption = f"Loss by size at equal compute; {by} (stars). "
    if fit.optima and fit.optima.excluded:
        caption += "Budgets without a minimum inside are hollow. "
    return Drawn("isoflop", "IsoFLOP curves", caption + conventions(fit.points), figure)


def _has_curves(fit: Fit) -> bool:
    if not {"n", "d", "c"} <= set(fit.points.x):
        return False
    counts = np.bincount(budgets(fit.points.x["c"]))
    return len(counts) <= _MOST_BUDGETS and float(np.median(counts)) >= 3


def _curves(axis, fit: Fit) -> None:  # type: ignore[no-untyped-def]  # of matplotlib
    points = fit.optima.points if fit.optima else fit.points
    number = budgets(points.x["c"])
    kept = {round(o.flops, -1): o for o in fit.optima.found} if fit.optima else {}
    for b, colour in enumerate(budget_colours(int(number.max()) + 1)):
        here = number == b
        flops = float(np.exp(np.log(points.x["c"][here]).mean()))
        n, loss = points.x["n"][here], points.loss[here]
        grid = np.geomspace(n.min(), n.max(), 200)
        optimum = kept.get(round(flops, -1))
        hollow = fit.optima is not None and optimum is None
        axis.plot(n, loss, "o", ms=4, color=colour, mfc="none" if hollow else colour, label=f"{flops:.3g}")
        if optimum:
            axis.plot(grid, values_on(np.log(n), loss, optimum.how, np.log(grid)), color=colour, lw=1.2)
            axis.plot(optimum.n, optimum.loss, "*", ms=11, color=colour, mec="white", mew=0.6)
        elif not fit.optima and has_optimum(fit.law.form):
            d = flops / fit.law.convention.per_token(grid)
            x = {"n": grid, "d": d, "c": np.full_like(grid, flops), "unique": d}
            axis.plot(grid, fit.law.loss(x), color=colour, lw=1.2)
            best = fit.best_at(flops)
            if best.n and grid[0] <= best.n.value <= grid[-1]:
                axis.plot(best.n.value, best.loss.value, "*", ms=11, color=colour, mec="white", mew=0.6)
    axis.set(xlabel=size_label("n", points.about), ylabel=plain(loss_label(points.about)))
    log_axes(axis, "x")
    titled(axis, points.about)
    axis.legend(title="C, FLOPs", title_fontsize=8, ncols=2 if number.max() > 5 else 1)


def envelope(study: list[Judged]) -> Drawn | None:
    shown = [one for one in study if "c" in one.fit.points.x and one.fit.best]
    if not shown or len({loss_label(one.fit.points.about) for one in shown}) > 1:
        return None  # different scores are never on one axis
    figure, [axis] = new()
    for colour, one in colours(shown):
        fit = one.fit
        c, loss = fit.points.x["c"], fit.points.loss
        lowest = undominated(fit.points)
        axis.plot(c, loss, "o", ms=3, color=colour, alpha=0.3)
        axis.plot(c[lowest], loss[lowest], "o", ms=4.5, color=colour, label=label_of(fit.points.about))
        at = _compute(fit)
        bands = [best.loss for best in _along(fit, at)]
        axis.plot(at, [i.value for i in bands], color=colour)
        _shade(axis, at, bands, colour)
    about = shown[0].fit.points.about
    axis.set(yscale="log", xlabel="C, FLOPs", ylabel=plain(loss_label(about)))
    log_axes(axis, "x")
    _plain_ticks(axis)
    axis.legend()
    level = f"{shown[0].fit.method.level:.0%}"
    caption = f"All runs; those that none with less compute reaches; L*(C) and its {level} band, of the law. "
    return Drawn("envelope", "Loss by compute", caption + conventions(shown[0].fit.points), figure)


def allocation(study: list[Judged]) -> Drawn | None:
    shown = [one for one in study if one.fit.lines or has_optimum(one.fit.law.form)]
    if not shown:
        return None
    figure, axes = new(2, width=9.0, height=4.0)
    for colour, one in colours(shown):
        fit = one.fit
        at = _compute(fit)
        along = _along(fit, at)
        for axis, which in zip(axes, "nd", strict=True):
            series = [interval for best in along if (interval := getattr(best, which))]
            name = label_of(fit.points.about)
            slope = fit.best[0].a if which == "n" else fit.best[0].b
            label = f"{name}: C^{slope:.3f}" if slope is not None else name
            axis.plot(at, [i.value for i in series], color=colour, label=label)
            _shade(axis, at, series, colour)
            if fit.optima:
                column = fit.optima.column(which)
                axis.plot(fit.optima.column("flops"), column, "o", ms=5, color=colour)
        for axis in axes:
            axis.axvline(fit.points.x["c"].max(), color=LIGHT, lw=1, zorder=0)
    about = shown[0].fit.points.about
    for axis, name in zip(axes, ("n", "d"), strict=True):
        log_axes(axis, "xy")
        axis.set(xlabel="C, FLOPs", ylabel=f"optimal {size_label(name, about)}")
        axis.legend()
    level = f"{shown[0].fit.method.level:.0%}"
    caption = (
        f"Compute-optimal size and data with {level} bands (delta method); exponents are those at the "
        "largest run's FLOPs, which the grey line marks. "
    )
    return Drawn(
        "allocation", "Optimal N and D by compute", caption + conventions(shown[0].fit.points), figure
    )


def _compute(fit: Fit) -> np.ndarray:
    c = fit.points.x["c"]
    return np.geomspace(c.min(), _BEYOND * c.max(), 25)


def _along(fit: Fit, at: np.ndarray) -> list[Best]:
    if fit.lines or fit.draws.withheld:
        return [fit.best_at(float(c)) for c in at]
    return best_along(fit.law, at, fit.method.level)


def _shade(axis, at: np.ndarray, series: list[Interval], colour: str) -> None:  # type: ignore[no-untyped-def]
    if all(i.lo is not None and i.hi is not None for i in series):
        axis.fill_between(at, [i.lo for i in series], [i.hi for i in series], color=colour, alpha=0.15, lw=0)


def _plain_ticks(axis) -> None:  # type: ignore[no-untyped-def]
    """Losses as they are said, not as powers of ten."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    axis.yaxis.set_major_locator(MaxNLocator(7))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
