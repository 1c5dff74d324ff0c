"""What the figures of a comparison share: a panel for each yardstick, a colour and a mark for each series."""

from collections.abc import Iterator
from typing import Any

from llmtrain.compare import words
from llmtrain.compare.results import Estimate, Result
from llmtrain.compare.saved import Comparison
from llmtrain.scaling.figures.canvas import plain

# of Okabe and Ito, told apart with any kind of colour vision; marks tell them apart without colours
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COLUMNS = 3


def largest(comparison: Comparison) -> list[Result]:
    """The main metrics at the largest budget, those of the summary first."""
    budget = max(comparison.about.budgets)
    found = [one for one in comparison.results if one.main and one.budget == budget]
    return sorted(found, key=lambda one: not one.summary)


def looks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Of each series, its colour and its mark."""
    return {
        one.name: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)])
        for i, one in enumerate(comparison.about.series)
    }


def grid(count: int, *, rows: int) -> tuple[Any, list[Any]]:
    """``count`` panels, each with ``rows`` lines of text beside it."""
    from matplotlib.figure import Figure

    columns = min(count, _COLUMNS)
    deep = -(-count // columns)
    figure = Figure(figsize=(1.6 + 3.0 * columns, deep * (0.24 * rows + 1.0)))
    axes = list(figure.subplots(deep, columns, squeeze=False, sharey=True).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def titled(axis: Any, result: Result) -> None:
    name = f"{result.yardstick.replace('_', ' ')}{words.arrow(result)}"
    axis.set_title(plain(name if result.summary else f"{name}\nnot in the summary"))


def few_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(5))


def ends(found: Estimate) -> Iterator[float]:
    yield from (v for v in (found.value, found.lo, found.hi) if v is not None)


def whiskers(found: Estimate) -> list[list[float]] | None:
    """How far the interval reaches to either side, as matplotlib takes it."""
    if found.lo is None or found.hi is None:
        return None
    return [[found.value - found.lo], [found.hi - found.value]]
