"""How far each cell of a sweep is, read from what its run left: nothing else is remembered, so nothing can be wrong."""

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from llmtrain.callbacks.loggers.jsonl import read
from llmtrain.record import RunRecord
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.pool import last_line

FAILED = (
    "failed"  # of the sweep's folder: a file with the exit code of each cell that failed in the last start
)


class State(StrEnum):
    WAITING = "waiting"
    STARTED = "started"  # has a folder and no record: it runs, or goes on at the next start
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"


class Status(NamedTuple):
    cell: Cell
    state: State
    step: int = 0
    loss: float | None = None  # of the last logged step; of a finished run, its score
    error: str = ""


def status_of(cell: Cell, folder: Path) -> Status:
    """``folder`` is the sweep's."""
    run = cell.run(folder)
    if (run / "record.json").exists():
        record = RunRecord.read(run / "record.json")
        state = State.FINISHED if record.status == "finished" else State.DIVERGED
        return Status(cell, state, record.steps, record.score.value)
    step, loss = _last_logged(run / "metrics.jsonl")
    if _stopped_by_guard(run / "anomalies.jsonl"):
        return Status(cell, State.DIVERGED, step, loss, last_line(log_of(cell, folder)))
    if (folder / FAILED / cell.id).exists():
        return Status(cell, State.FAILED, step, loss, last_line(log_of(cell, folder)))
    return Status(cell, State.STARTED if run.exists() else State.WAITING, step, loss)


def loss_of(status: Status) -> float | None:
    """The score of a finished cell, infinite where it diverged; none while it is not done."""
    if status.state is State.DIVERGED:
        return math.inf
    return status.loss if status.state is State.FINISHED else None


def table(found: Sequence[Status]) -> str:
    """A line a cell; numbers are right-aligned under their heads."""
    head = ("cell", "role", "N", "steps", "lr", "loss", "state")
    rows = [
        (
            s.cell.id,
            s.cell.role.value,
            f"{s.cell.n:,}",
            f"{s.step:,}/{s.cell.steps:,}",
            "rule" if s.cell.lr is None else f"{s.cell.lr:.3g}",
            "" if s.loss is None else f"{s.loss:.4f}",
            s.state.value + (f": {s.error}" if s.error else ""),
        )
        for s in found
    ]
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    left = {0, 1, 6}
    lines = [
        "  ".join(
            x.ljust(w) if k in left else x.rjust(w) for k, (x, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    counts = {state: sum(s.state == state for s in found) for state in State}
    said = ", ".join(f"{n} {state.value}" for state, n in counts.items() if n)
    return "\n".join(line.rstrip() for line in lines) + f"\n{len(found)} cells: {said}"


def log_of(cell: Cell, folder: Path) -> Path:
    return folder / "logs" / f"{cell.id}.log"


def _last_logged(metrics: Path) -> tuple[int, float | None]:
    for row in reversed(read(metrics)):
        if "loss" in row:
            return int(row["step"]), row["loss"]
    return 0, None


def _stopped_by_guard(anomalies: Path) -> bool:
    return any(row["action"] == "stop" for row in read(anomalies)[-1:])
