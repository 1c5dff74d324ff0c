"""``anomalies.jsonl``: one JSON object for each step that the guard objected to, on the disk before the run goes on."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llmtrain.callbacks.loggers.jsonl import read
from llmtrain.checkpoint.files import sync_folder

NAME = "anomalies.jsonl"  # in the run's folder


class AnomalyLog:
    """Appends; what a start does again, and so will write again, is dropped first.

    A rollback stays even where the run is back at an earlier step, since the rows that it went past stay behind: it is
    part of every state that was saved after it, and those are of later steps than the one that it went back to.
    """

    def __init__(self, folder: Path, *, from_step: int) -> None:
        self.path = folder / NAME
        if self.path.exists():
            self._keep(lambda row: row.get("back_to", row["step"] - 1) < from_step)

    def write(self, row: dict[str, Any]) -> None:
        """Numbers that are not finite, which JSON does not have, become words: "nan", "inf", "-inf"."""
        self._put(self.path, [row], mode="a")

    def go_back(self, step: int) -> None:
        """Forget what the steps after ``step`` met, since they come again."""
        if self.path.exists():
            self._keep(lambda row: row["step"] <= step or row["action"] == "rollback")

    def _keep(self, kept: Callable[[dict[str, Any]], bool]) -> None:
        partial = self.path.with_suffix(".jsonl.tmp")
        self._put(partial, filter(kept, read(self.path)), mode="w")
        os.replace(partial, self.path)
        sync_folder(self.path.parent)

    def _put(self, path: Path, rows: Iterable[dict[str, Any]], *, mode: str) -> None:
        new = not path.exists()
        with path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(_as_json(row), allow_nan=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, float) and value - value != 0:  # so are these alone
        return str(value)
    return value
