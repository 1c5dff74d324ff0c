"""A comparison in Weights & Biases: its long table, what the data say of it, and its figures."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.callbacks.loggers.wandb import WandB
from llmtrain.compare.results import Difference, Result, Standing
from llmtrain.compare.saved import Comparison, Row
from llmtrain.config import to_plain

_ROW = tuple(field.name for field in dataclasses.fields(Row) if field.name not in ("choices", "interval"))


def log_tables(comparison: Comparison, folder: Path, logger: WandB) -> None:
    """As one run, of the group that is the comparison's name; offline where there is no login."""
    about = comparison.about
    [sink] = dataclasses.replace(logger, group=about.name).open(folder, to_plain(about), step=0)
    import wandb  # after the sink, which tells it to be quiet

    figures = {path.stem: wandb.Image(str(path)) for path in sorted((folder / "figures").glob("*.png"))}
    sink.log(
        {"step": 0, "scores": _scores(comparison, wandb), "verdict": _verdict(comparison, wandb), **figures}
    )
    sink.close()


def _scores(comparison: Comparison, wandb: Any) -> Any:
    rows = [[getattr(row, name) for name in _ROW] for row in comparison.rows]
    return wandb.Table(columns=list(_ROW), data=rows)


def _verdict(comparison: Comparison, wandb: Any) -> Any:
    lines = [line for result in comparison.results for line in _lines(result)]
    return wandb.Table(columns=list(lines[0]), data=[list(line.values()) for line in lines])


def _lines(result: Result) -> Iterator[dict[str, Any]]:
    differences = {one.series: one for one in result.differences}
    for one in result.standings:
        yield {
            "budget": result.budget,
            "yardstick": result.yardstick,
            "metric": result.metric,
            "series": one.series,
            **_of(one, differences.get(one.series)),
        }


def _of(one: Standing, difference: Difference | None) -> dict[str, Any]:
    found = {
        "value": one.estimate.value,
        "lo": one.estimate.lo,
        "hi": one.estimate.hi,
        "learned": one.learned,
    }
    names = ("difference", "difference_lo", "difference_hi", "p_holm", "shown", "detectable")
    if difference is None:
        return found | dict.fromkeys(names)
    apart = difference.estimate
    values = (apart.value, apart.lo, apart.hi, difference.p_holm, difference.shown, difference.detectable)
    return found | dict(zip(names, values, strict=True))
