"""Errors against compute, all series on common axes: of each yardstick, the share between ceiling and chance."""

from typing import Any

import numpy as np

from llmtrain.compare import words
from llmtrain.compare.figures.panels import grid, largest, looks
from llmtrain.compare.laws import between, error, spent
from llmtrain.compare.results import Result
from llmtrain.compare.saved import Comparison
from llmtrain.scaling.figures.canvas import GREY, Drawn, log_axes, plain

_ROWS = 9  # of text: the height of a panel


def growth(comparison: Comparison) -> Drawn | None:
    about = comparison.about
    shown = [one for one in largest(comparison) if between(one) and one.summary]
    if len(about.budgets) < 2 or not shown:
        return None
    figure, axes = grid(len(shown), rows=_ROWS)
    for axis, result in zip(axes, shown, strict=True):
        _growth(axis, comparison, result)
    axes[0].set_ylabel("error: 0 ceiling, 1 chance")
    named = {
        text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
    caption = (
        "Error as a share of the way from ceiling (0; of bits, none) to chance (1), with 95% intervals; hollow: "
        f"{words.NOT_LEARNED}. Lines join means: they are no fits. {words.matched(about)}."
    )
    return Drawn("growth", "Scores by compute", caption, figure)


def _growth(axis: Any, comparison: Comparison, at: Result) -> None:
    style = looks(comparison)
    same = [r for r in comparison.results if (r.yardstick, r.metric) == (at.yardstick, at.metric)]
    for one in comparison.about.series:
        colour, mark = style[one.name]
        found = [(r, s) for r in same for s in r.standings if s.series == one.name]
        if not found:
            continue
        flops = [spent(comparison, one.name, r.budget) for r, _ in found]
        errors = [error(r, s.estimate) for r, s in found]
        middle = np.array([e.value for e in errors])
        axis.plot(flops, middle, color=colour, lw=1, label=plain(one.name), marker=mark, ms=5)
        for c, e, (_, standing) in zip(flops, errors, found, strict=True):
            if e.lo is not None and e.hi is not None:
                axis.plot([c, c], [max(e.lo, 1e-9), e.hi], color=colour, lw=1)
            if standing.learned is False:
                axis.plot(c, e.value, mark, ms=5, color=colour, mfc="white")
    axis.axhline(1, color=GREY, lw=0.9, ls=":")
    log_axes(axis, "xy")
    axis.set_xlabel("C, model FLOPs of a cell")
    axis.set_title(at.yardstick.replace("_", " "))
