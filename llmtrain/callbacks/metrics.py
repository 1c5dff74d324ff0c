"""What every logged step says: loss, rate, norm, speed, utilisation and the work done so far."""

from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite
from typing import Any, NamedTuple

import lightning
import torch

from llmtrain import ranks
from llmtrain.callbacks.base import AfterStep
from llmtrain.callbacks.loggers.base import Sink
from llmtrain.lit import Pretrain
from llmtrain.nn import routing
from llmtrain.nn.base import Flops


class Work(NamedTuple):
    """What one row costs and one second could do."""

    tokens_per_row: float  # raw tokens
    flops_per_row: Flops
    peak: float  # FLOP/s of all devices together, at the run's precision


class Metrics(AfterStep):
    """Every ``every`` steps and at the last, a row to each sink: means over the steps since the row before."""

    def __init__(self, sinks: Sequence[Sink], work: Work, *, every: int, horizon: int):
        self.sinks, self.work, self.every, self.horizon = list(sinks), work, every, horizon
        self._before = (0, 0.0)  # rows and seconds at the row before

    def on_train_start(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        self._before = (module.progress.rows, module.progress.seconds)

    def go_back(self, module: Pretrain) -> None:
        """Forget what was written of the steps after the one that ``module`` is back at."""
        self._before = (module.progress.rows, module.progress.seconds)
        for sink in self.sinks:
            sink.go_back(module.progress.step)

    def after_step(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        progress = module.progress
        if progress.step % self.every and progress.step != self.horizon:
            return
        sums = torch.stack((progress.nats, progress.counts))
        ranks.sum_shares(sums)
        nats, counts = sums.tolist()
        rows, seconds = progress.rows - self._before[0], progress.seconds - self._before[1]
        self._before = (progress.rows, progress.seconds)
        report = module.optimizer.last
        self.write(
            {
                "step": progress.step,
                "tokens": round(progress.rows * self.work.tokens_per_row),
                "flops": progress.rows * self.work.flops_per_row.model,
                "loss": nats / counts if counts else None,
                "lr": report.lr,
                "grad_norm": report.grad_norm if isfinite(report.grad_norm) else None,
                "updated": report.updated,
                "tokens_per_second": rows * self.work.tokens_per_row / seconds,
                "mfu": rows * self.work.flops_per_row.counter / seconds / self.work.peak,
                "seconds": progress.seconds,
            }
            | (routing.report(*module.routed) if module.routed else {})
        )
        progress.nats.zero_()
        progress.counts.zero_()

    def write(self, row: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.log(row)

    def close(self) -> None:
        """Each sink, whatever another one raises: a service must hear of the end though a disk is full."""
        with ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close)
