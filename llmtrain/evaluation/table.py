"""An evaluation as a table in a terminal."""

from collections.abc import Sequence

from llmtrain.evaluation.saved import Row


def table(rows: Sequence[Row]) -> str:
    """A line a number, with its standard error and chance; what must be known of it below."""
    lines = [("of", "yardstick", "metric", "value", "se", "chance", "n")]
    notes: dict[str, int] = {}
    for row in rows:
        mark = f" [{notes.setdefault(row.note, len(notes) + 1)}]" if row.note else ""
        lines.append(
            (
                row.of,
                row.yardstick + mark,
                row.metric,
                f"{row.value:.4f}",
                _shown(row.item_se),
                _shown(row.chance),
                f"{row.n:,}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(text + [f"[{i}] {note}" for note, i in notes.items()])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
