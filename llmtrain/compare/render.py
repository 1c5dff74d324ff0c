"""Tables as a terminal shows them, as Markdown, and as CSV."""

import csv
import io
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from llmtrain.compare.saved import Comparison, replaced_text
from llmtrain.compare.summary import statements
from llmtrain.compare.table import Table, tables, wide
from llmtrain.markup import inline, visible

MARKDOWN, CSV = "table.md", "table.csv"
_WIDTH = 110  # where there is no terminal
_APART = 3  # spaces around a column


def terminal(comparison: Comparison, *, width: int | None = None) -> str:
    """Scores and what they show, as plain text; ``width`` is the terminal's where none is given."""
    width = width or shutil.get_terminal_size((_WIDTH, 24)).columns
    blocks = [_drawn(one, width) for one in tables(comparison) if one.rule is not None]
    for budget in comparison.about.budgets:
        first, *others = statements(comparison, budget)
        marked = [(first, ""), *((one, "- ") for one in others)]
        blocks.append(
            "\n".join(
                textwrap.fill(visible(text), width, initial_indent=mark, subsequent_indent=" " * len(mark))
                for text, mark in marked
            )
        )
    return "\n\n".join(blocks)


def _drawn(one: Table, width: int) -> str:
    """As many tables below each other as its columns need."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    console.print(Text(visible(one.title), style="bold"))
    for columns in _packed(one, width):
        drawn = Rich(box=box.SIMPLE_HEAD)
        for i in columns:
            drawn.add_column(Text(visible(one.columns[i])), justify="right" if i else "left", no_wrap=True)
        for row, cells in enumerate(one.rows):
            shown = (Text(visible(cells[i])) for i in columns)
            drawn.add_row(*shown, end_section=row + 1 == one.rule)
        console.print(drawn)
    console.print(Text(visible(one.caption)))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _packed(one: Table, width: int) -> list[list[int]]:
    """The columns of each, the name always first."""
    wide = [_APART + max(len(row[i]) for row in (one.columns, *one.rows)) for i in range(len(one.columns))]
    packed, used = [[0]], wide[0]
    for i in range(1, len(wide)):
        if used + wide[i] > width and len(packed[-1]) > 1:
            packed.append([0])
            used = wide[0]
        packed[-1].append(i)
        used += wide[i]
    return packed


def markdown(found: Sequence[Table]) -> str:
    return "\n".join(_markdown(one) for one in found)


def _markdown(one: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(inline(text) for text in cells)} |"

    ruler = f"|{'|'.join(['---', *['---:'] * (len(one.columns) - 1)])}|"
    body = [line(one.columns), ruler, *map(line, one.rows)]
    return "\n".join([f"**{inline(one.title)}**", "", *body, "", inline(one.caption), ""])


def csv_text(comparison: Comparison) -> str:
    head, rows = wide(comparison)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return stream.getvalue()


def write_tables(folder: Path, comparison: Comparison) -> None:
    """``table.md`` and ``table.csv``."""
    replaced_text(folder / MARKDOWN, markdown(tables(comparison)))
    replaced_text(folder / CSV, csv_text(comparison))
