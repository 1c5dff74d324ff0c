"""``report.html``: one self-contained page of a comparison, with its tables, figures, method and checklist."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtrain.compare import words
from llmtrain.compare.checklist import checklist
from llmtrain.compare.figures.alike import alike
from llmtrain.compare.figures.growth import growth
from llmtrain.compare.figures.scores import differences, scores
from llmtrain.compare.saved import Comparison, replaced_text
from llmtrain.compare.summary import statements
from llmtrain.compare.table import Table, tables
from llmtrain.scaling.figures.canvas import Drawn, draw_and_write
from llmtrain.scaling.page import embedded, rendered

NAME = "report.html"
FIGURES: tuple[Callable[[Comparison], Drawn | None], ...] = (scores, differences, growth, alike)


def write_report(comparison: Comparison, folder: Path) -> None:
    """Figures as PNG and SVG under ``figures/``, and the page."""
    drawn = draw_and_write(comparison, FIGURES, folder / "figures")
    replaced_text(folder / NAME, render(comparison, drawn, folder))


def render(comparison: Comparison, drawn: list[Drawn], folder: Path) -> str:
    """The page. All text of users is escaped."""
    about = comparison.about
    found = tables(comparison)
    items = checklist(comparison)
    return rendered(
        "llmtrain.compare",
        "report.html.j2",
        about=about,
        matched=words.matched(about),
        seeds=words.seeds(about),
        budgets=[words.budget(about, budget) for budget in about.budgets],
        summary=[list(statements(comparison, budget)) for budget in about.budgets],
        scores=[one for one in found if one.rule is not None],
        differences=[one for one in found if one.rule is None],
        figures=[
            {
                "title": one.title,
                "caption": one.caption,
                "source": embedded(folder / "figures" / f"{one.name}.svg"),
            }
            for one in drawn
        ],
        spreads=[
            {
                "label": words.label(one),
                "budget": words.short(one.budget),
                "spread": one.spread,
                "groups": one.groups,
            }
            for one in comparison.results
            if one.main
        ],
        choices=_choices(comparison),
        checklist=items,
        unstated=sum(not item.stated for item in items),
    )


def _choices(comparison: Comparison) -> Table | None:
    """What was chosen on dev for the main metric of each yardstick, by series, at every seed."""
    main = {(one.yardstick, one.metric, one.split) for one in comparison.results if one.main}
    rows = [
        row
        for row in comparison.rows
        if row.choices and row.role == "trained" and (row.yardstick, row.metric, row.split) in main
    ]
    if not rows:
        return None
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        said = ", ".join(f"{name} {value}" for name, value in row.choices.items())
        key = (row.series, row.yardstick, words.short(row.budget or 0))
        found.setdefault(key, {}).setdefault(said, None)
    return Table(
        title="Chosen on dev",
        columns=("series", "yardstick", "budget", "choices"),
        rows=tuple((*key, "; ".join(said)) for key, said in found.items()),
        rule=None,
        caption="Where seeds differ, every choice is listed.",
    )
