"""TensorBoard's event files, in ``tensorboard/`` of the run folder."""

import importlib.util
from pathlib import Path
from typing import Any

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.config import config
from llmtrain.errors import ConfigError


@config
class TensorBoard(Logger):
    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "logger=tensorboard needs the tensorboard package: pip install 'llmtrain[tensorboard]'"
            )
        return [TensorBoardSink(folder / "tensorboard", step)]


class TensorBoardSink(Sink):
    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self.go_back(step)

    def log(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def go_back(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()
