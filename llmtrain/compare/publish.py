"""The end of a comparison: from its numbers to the files that say what they show."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.compare.judge import judge
from llmtrain.compare.render import terminal, write_tables
from llmtrain.compare.saved import Comparison, Key, write_comparison
from llmtrain.evaluation.base import Items

if TYPE_CHECKING:
    from llmtrain.callbacks.loggers.wandb import WandB


def publish(
    comparison: Comparison,
    items: Mapping[Key, Items],
    folder: Path,
    *,
    report: bool = True,
    wandb: "WandB | None" = None,
) -> str:
    """Judge the numbers, and write ``comparison.json``, ``items.parquet``, tables, figures and ``report.html``.

    Returns what a terminal shows: scores and summary. Scores that are the same give files that are the same.
    """
    judged = judge(comparison, items)
    write_comparison(folder, judged, items)
    write_tables(folder, judged)
    if report:
        from llmtrain.compare.report import write_report  # imports matplotlib

        write_report(judged, folder)
    if wandb is not None:
        from llmtrain.compare.logged import log_tables

        log_tables(judged, folder, wandb)
    return terminal(judged)
