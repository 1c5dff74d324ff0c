"""``metrics.jsonl``: one JSON object a logged step, complete to the last one even after a kill."""

import json
import os
from pathlib import Path
from typing import Any

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.config import config


class JsonlSink(Sink):
    """Appends; rows of steps that a resumed run will do again are dropped first."""

    def __init__(self, path: Path, *, from_step: int):
        if path.exists():
            kept = [
                line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= from_step
            ]
            partial = path.with_suffix(".jsonl.tmp")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # by line

    def log(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self._file.close()


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
