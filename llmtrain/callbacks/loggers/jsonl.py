"""``metrics.jsonl``: one JSON object a logged step, complete to the last one even after a kill."""

import json
import logging
import os
from io import FileIO
from pathlib import Path
from typing import Any

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.config import config

log = logging.getLogger(__name__)


class JsonlSink(Sink):
    """Appends; rows of steps that a resumed run will do again are dropped first.

    While the disk refuses, a ``patient`` one keeps its rows in memory; ``close`` raises where it still does.
    """

    def __init__(self, path: Path, *, from_step: int, patient: bool = False):
        self._path, self._patient = path, patient
        self._file = self._opened(from_step)
        self._rest = b""  # not written yet

    def log(self, row: dict[str, Any]) -> None:
        waiting = bool(self._rest)
        self._rest += f"{json.dumps(row)}\n".encode()
        try:
            self._write()
        except OSError as error:
            if not self._patient:
                raise
            if not waiting:
                log.warning("%s: %s; rows are kept until it can be written", self._file.name, error.strerror)

    def go_back(self, step: int) -> None:
        self.close()
        self._file = self._opened(step)

    def close(self) -> None:
        try:
            self._write()
        finally:
            self._file.close()

    def _write(self) -> None:
        while self._rest:
            self._rest = self._rest[self._file.write(self._rest) :]

    def _opened(self, step: int) -> FileIO:
        """To append to, without the rows of later steps."""
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            partial = self._path.with_suffix(".jsonl.tmp")
            partial.write_text(
                "".join(f"{line}\n" for line in lines if _step(line) <= step), encoding="utf-8"
            )
            os.replace(partial, self._path)
        return self._path.open("ab", buffering=0)


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
