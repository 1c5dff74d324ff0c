"""Scores of every series on every yardstick, with baselines, chance and ceiling; and their differences."""

from typing import Any

from llmtrain.compare import words
from llmtrain.compare.figures.panels import ends, few_ticks, grid, largest, looks, titled, whiskers
from llmtrain.compare.results import Estimate, Reference, Result
from llmtrain.compare.saved import Comparison
from llmtrain.scaling.figures.canvas import GREY, INK, LIGHT, Drawn, plain

_ROOM = 0.3  # on either side, of the span of what is shown


def scores(comparison: Comparison) -> Drawn | None:
    results = largest(comparison)
    if not results:
        return None
    series = [one.name for one in comparison.about.series]
    references = dict.fromkeys(r.name for one in results for r in one.references if r.role == "baseline")
    names = [*series, *references]
    figure, axes = grid(len(results), rows=len(names))
    for axis, result in zip(axes, results, strict=True):
        _scores(axis, result, comparison, {name: -i for i, name in enumerate(names)})
    about = comparison.about
    caption = (
        f"Means over {words.seeds(about)} with 95% intervals of seeds and items; small marks: single seeds; "
        f"hollow: {words.NOT_LEARNED}; grey: baselines; crosses: untrained models; < and >: farther off; dotted: "
        "chance; dashed: ceiling. "
        f"{words.budget(about, results[0].budget)}. {words.matched(about)}."
    )
    return Drawn("scores", "Scores", caption, figure)


def _scores(axis: Any, result: Result, comparison: Comparison, height: dict[str, int]) -> None:
    style = looks(comparison)
    for one in result.standings:
        colour, mark = style[one.series]
        y = height[one.series]
        single = [
            row.value
            for row in comparison.rows
            if row.role == "trained"
            and (row.series, row.budget) == (one.series, result.budget)
            and (row.yardstick, row.metric, row.split) == (result.yardstick, result.metric, result.split)
        ]
        axis.plot(single, [y - 0.28] * len(single), "|", color=colour, ms=4, alpha=0.7)
        _dot(axis, one.estimate, y, colour, mark, filled=one.learned is not False)
    near = _near(result)
    for reference in result.references:
        _reference(axis, reference, height, near)
    _line(axis, "chance", result.chance, near, ":")
    _line(axis, "ceiling", result.ceiling, near, "--")
    few_ticks(axis)
    axis.set_yticks(list(height.values()), [plain(name) for name in height])
    axis.set_ylim(min(height.values()) - 1.4, 0.6)  # a line for what is out of sight
    axis.set_xlabel(plain(result.metric))
    titled(axis, result)


def _near(result: Result) -> tuple[float, float]:
    """What is worth the width: the series and the best baseline, with some room; what is farther off is pointed to."""
    values = [v for s in result.standings for v in ends(s.estimate)]
    pick = max if result.better == "higher" else min
    if result.references:
        values.append(pick(one.estimate.value for one in result.references))
    low, high = min(values), max(values)
    room = _ROOM * (high - low)
    return low - room, high + room


def _reference(axis: Any, one: Reference, height: dict[str, int], near: tuple[float, float]) -> None:
    y = height[one.name] + (0.0 if one.role == "baseline" else 0.28)
    at = one.estimate.value
    if not near[0] <= at <= near[1]:
        axis.plot(
            *((near[0], y) if at < near[0] else (near[1], y)), "<" if at < near[0] else ">", ms=4, color=GREY
        )
        return
    whisker = whiskers(one.estimate) if one.role == "baseline" else None
    axis.errorbar(
        at, y, xerr=whisker, fmt="o" if one.role == "baseline" else "x", ms=4, color=GREY, capsize=2
    )


def _line(axis: Any, name: str, at: float | None, near: tuple[float, float], style: str) -> None:
    """A line where it is near, else its number at that side."""
    if at is None:
        return
    if near[0] <= at <= near[1]:
        axis.axvline(at, color=INK, lw=0.9, ls=style, zorder=0)
        return
    right = at > near[1]
    text = f"{name} {at:.3g} →" if right else f"← {name} {at:.3g}"
    place = (0.98, 0.03) if right else (0.02, 0.03)
    axis.text(*place, text, transform=axis.transAxes, ha="right" if right else "left", fontsize=7, color=GREY)


def differences(comparison: Comparison) -> Drawn | None:
    results = [one for one in largest(comparison) if one.differences]
    if not results:
        return None
    about = comparison.about
    names = [one.name for one in about.series if one.name != about.baseline]
    figure, axes = grid(len(results), rows=len(names))
    for axis, result in zip(axes, results, strict=True):
        _differences(axis, result, comparison, {name: -i for i, name in enumerate(names)})
    caption = (
        f"Differences to {about.baseline} with 95% intervals; filled: shown (Holm's p within a yardstick at most .05); "
        "hollow: not shown; grey bars: differences under the smallest that would be shown with a probability of .8. "
        f"{words.budget(about, results[0].budget)}. {words.matched(about)}."
    )
    return Drawn("differences", f"Differences to {about.baseline}", caption, figure)


def _dot(axis: Any, estimate: Estimate, y: int, colour: str, mark: str, *, filled: bool) -> None:
    """A value with its interval, at the height of its series."""
    axis.errorbar(
        estimate.value,
        y,
        xerr=whiskers(estimate),
        fmt=mark,
        ms=5.5,
        color=colour,
        mfc=colour if filled else "white",
        capsize=2,
    )


def _differences(axis: Any, result: Result, comparison: Comparison, height: dict[str, int]) -> None:
    style = looks(comparison)
    axis.axvline(0, color=INK, lw=0.9, zorder=0)
    for one in result.differences:
        colour, mark = style[one.series]
        y = height[one.series]
        if one.detectable is not None:
            axis.barh(y, 2 * one.detectable, left=-one.detectable, height=0.7, color=LIGHT, alpha=0.6, lw=0)
        _dot(axis, one.estimate, y, colour, mark, filled=one.shown)
    few_ticks(axis)
    axis.set_yticks(list(height.values()), [plain(name) for name in height])
    axis.set_ylim(min(height.values()) - 0.6, 0.6)
    axis.set_xlabel(plain(f"{result.metric}, less {comparison.about.baseline}"))
    titled(axis, result)
