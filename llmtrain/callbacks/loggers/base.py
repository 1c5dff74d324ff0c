"""Where the numbers of a run go, besides the terminal."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from llmtrain.config import config


class Sink(ABC):
    """Takes one flat row of numbers at a time."""

    @abstractmethod
    def log(self, row: dict[str, Any]) -> None: ...

    def go_back(self, step: int) -> None:  # noqa: B027 - where rows cannot be taken back, they are there twice
        """Rows of later steps will come again."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Called once, however the run ends."""


@config
class Logger(ABC):
    """A further destination of the metrics; ``metrics.jsonl`` is always written."""

    @abstractmethod
    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        """The sinks of a run that goes on from ``step``; called on rank 0 only."""
