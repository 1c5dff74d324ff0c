"""What all figures share: how they look, what their captions say, and how they are written."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmtrain.scaling.points import About, Points
from llmtrain.scaling.study import Judged

T = TypeVar("T")

_FEW_DECADES = 150  # highest over lowest
INK, GREY, LIGHT = "#1f2430", "#6b7280", "#d5d9e0"
SERIES = ("#2563eb", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#a61e4d")
STYLE = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "llmtrain",  # the same figure, the same file
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@dataclass(frozen=True)
class Drawn:
    name: str  # of its files
    title: str
    caption: str
    figure: Any  # of matplotlib


def new(columns: int = 1, *, width: float = 7.0, height: float = 4.2) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def colours(study: list[Judged]) -> Iterator[tuple[str, Judged]]:
    for i, one in enumerate(study):
        yield SERIES[i % len(SERIES)], one


def budget_colours(count: int) -> list[Any]:
    """From dark to light as budgets rise."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.08 + 0.8 * i / max(1, count - 1)) for i in range(count)]


def conventions(points: Points) -> str:
    """What N, D and C count, as every caption says it."""
    return (
        f"N: {points.about.n_convention}; D: {points.about.tokens_unit}; C: FLOPs, {points.convention.name}."
    )


def loss_label(about: About) -> str:
    return about.score + (f" ({about.score_unit})" if about.score_unit else "")


def size_label(name: str, about: About) -> str:
    return {"n": "N, parameters", "d": f"D, {about.tokens_unit}", "c": "C, FLOPs"}[name]


def log_axes(axis: Any, which: str) -> None:
    """Logarithmic ("x", "y" or "xy"), with numbers at 1, 2 and 5 where few decades are shown, else at decades alone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in which:
        one = axis.xaxis if name == "x" else axis.yaxis
        (axis.set_xscale if name == "x" else axis.set_yscale)("log")
        low, high = one.get_view_interval()
        few = high < _FEW_DECADES * low
        one.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        if few:
            one.set_major_formatter(
                FuncFormatter(lambda v, _: f"{v:.3g}".replace("e+0", "e").replace("e+", "e"))
            )
        one.set_minor_formatter(NullFormatter())


def titled(axis: Any, about: About) -> None:
    if about.series != "all":
        axis.set_title(plain(about.series))


def label_of(about: About) -> str:
    """A series' name in a legend; the only one is called for what it is."""
    return "runs" if about.series == "all" else plain(about.series)


def plain(text: str) -> str:
    """As matplotlib shows it: a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def draw_and_write(study: T, makers: Iterable[Callable[[T], Drawn | None]], folder: Path) -> list[Drawn]:
    """Every figure that the study has, as PNG and SVG."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        drawn = [one for make in makers if (one := make(study)) is not None]
        for one in drawn:
            save(one, folder)
    return drawn


def save(one: Drawn, folder: Path) -> None:
    for suffix in ("png", "svg"):
        # no date: the same study writes the same files
        one.figure.savefig(
            folder / f"{one.name}.{suffix}", dpi=130, metadata={"Date": None} if suffix == "svg" else None
        )
