"""Tables as a terminal shows them, as Markdown, and as CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from llmtrain.compare.saved import Comparison, replaced_text
from llmtrain.compare.table import Table, tables, wide
from llmtrain.markup import inline, visible

MARKDOWN, CSV = "table.md", "table.csv"


def terminal(found: Sequence[Table], *, width: int | None = None) -> str:
    """As plain text, with lines; ``width`` is that of the terminal where none is given."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for one in found:
        drawn = Rich(
            title=Text(one.title), caption=Text(one.caption), box=box.SIMPLE_HEAD, title_justify="left"
        )
        drawn.caption_justify = "left"
        for i, column in enumerate(one.columns):
            drawn.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=i > 1)
        for i, row in enumerate(one.rows):
            drawn.add_row(*(Text(visible(text)) for text in row), end_section=i + 1 == one.rule)
        console.print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


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
