"""``metrics.jsonl``: one JSON object a logged step, complete to the last one even after a kill."""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.config import config


class JsonlSink(Sink):
    """Appends; rows of steps that a resumed run will do again are dropped first."""

    def __init__(self, path: Path, *, from_step: int):
        self._path = path
        self._file = self._opened(from_step)

    def log(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")

    def go_back(self, step: int) -> None:
        self._file.close()
        self._file = self._opened(step)

    def close(self) -> None:
        self._file.close()

    def _opened(self, step: int) -> TextIO:
        """To append to, without the rows of later steps."""
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            partial = self._path.with_suffix(".jsonl.tmp")
            partial.write_text(
                "".join(f"{line}\n" for line in lines if _step(line) <= step), encoding="utf-8"
            )
            os.replace(partial, self._path)
        return self._path.open("a", encoding="utf-8", buffering=1)  # by line


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):  # the line that a kill cut short
        return float("inf")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a ``metrics.jsonl``."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) < float("inf")]


@config
class Jsonl(Logger):
    """No destination besides ``metrics.jsonl``."""

    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        return []
