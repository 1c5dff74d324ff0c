"""A sweep on Weights & Biases, where its cells log there: one group, with a run for table, law and figures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtrain.callbacks.loggers.base import Logger
from llmtrain.callbacks.loggers.wandb import WandB, WandBSink
from llmtrain.compose import run_from
from llmtrain.config import to_plain
from llmtrain.record import RunRecord
from llmtrain.scaling import Study
from llmtrain.sweep.answer import held_out_cells
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.plan import Plan
from llmtrain.sweep.settings import Sweep

COLUMNS = ("cell", "series", "role", "N", "D", "FLOPs", "steps", "lr", "seed", "loss")


def grouped(sweep: Sweep, logger: Logger) -> tuple[str, ...]:
    """The words that put the runs of a sweep into one group, where the user gave none."""
    return (f"logger.group={sweep.name}",) if isinstance(logger, WandB) and logger.group is None else ()


def publish(sweep: Sweep, plan: Plan, studies: Mapping[Path, Study]) -> None:
    """A run of the sweep's name in the group of its cells; nothing where they do not log there."""
    logger = run_from(plan.cells[0].words).logger
    if not isinstance(logger, WandB):
        return
    sink = WandBSink(logger, sweep.folder, to_plain(sweep))
    rows = [_row(cell, sweep.folder) for cell in (*plan.cells, *held_out_cells(sweep.folder))]
    summary = {key: value for one in studies.values() for key, value in _laws(one)}
    figures = {
        f"{folder.relative_to(sweep.folder)}/{path.stem}": path
        for folder in studies
        for path in sorted((folder / "figures").glob("*.png"))
    }
    sink.report(COLUMNS, [row for row in rows if row], summary=summary, figures=figures)
    sink.close()


def _row(cell: Cell, folder: Path) -> list[Any]:
    """As its record has it; empty where there is none."""
    path = cell.run(folder) / "record.json"
    if not path.exists():
        return []
    r = RunRecord.read(path)
    of = (
        cell.id,
        cell.series,
        cell.role.value,
        cell.n,
        r.raw_tokens,
        r.flops_model,
        r.steps,
        r.lr,
        r.seed_init,
    )
    return [*of, r.score.value]


def _laws(study: Study) -> Iterator[tuple[str, float]]:
    """The parameters of each law by name; of several series those of their own folders alone."""
    if len(study.series) == 1:
        of = study.series[0].fit
        for name, interval in of.parameters.items():
            yield f"{of.points.about.series}/{name}", interval.value
