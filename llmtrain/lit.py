"""The only training code: a task, its optimiser, and what has been done so far."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor

from llmtrain import faults, heartbeat
from llmtrain.data.cursor import START, Cursor
from llmtrain.errors import NumbersError
from llmtrain.nn.routing import by_layer, n_tokens, over_ranks, routers, update_biases
from llmtrain.objectives.base import Loss, Task
from llmtrain.optim.composite import CompositeOptimizer


@dataclass
class Progress:
    """How far a run has come: with the weights and the optimiser, all that continuing needs."""

    step: int = 0  # optimiser steps done, skipped ones included
    cursor: Cursor = START  # the whole state of the data pipeline
    seconds: float = 0.0  # spent training, all starts together
    branch_step: int = 0  # where another run's state was taken over
    branch_rows: int = 0
    started: float = field(default_factory=time.monotonic)  # this start: a clock that is never set back
    wall_before: float = 0.0  # seconds of the starts before
    nats: Tensor = field(
        default_factory=lambda: torch.zeros((), dtype=torch.float64)
    )  # since the last logged step
    counts: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def rows(self) -> int:
        """Rows trained on."""
        return self.cursor.rows

    def tensors(self) -> dict[str, Tensor]:
        return {"nats": self.nats, "counts": self.counts}

    def to(self, device: torch.device) -> None:
        self.nats, self.counts = self.nats.to(device), self.counts.to(device)

    def values(self) -> dict[str, Any]:
        return self.cursor.values() | {
            "step": self.step,
            "seconds": self.seconds,
            "branch_step": self.branch_step,
            "branch_rows": self.branch_rows,
            "wall": self.wall(),
        }

    def wall(self) -> float:
        """Seconds of all starts, from the command to now."""
        return self.wall_before + time.monotonic() - self.started


class Clock:
    """Time spent training, with what interrupts it left out."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, pauses left out."""
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.started += time.perf_counter() - begin


def refuse(module: "Pretrain") -> None:
    """End the run: what becomes of a step that the guard objects to, where there is nobody to do more."""
    last = module.optimizer.last
    raise NumbersError(
        f"step {module.progress.step + 1}: loss {last.loss:g}, gradient norm {last.grad_norm:g}"
    )


class Pretrain(lightning.LightningModule):
    """Trains ``task``. Steps and rows are counted here and not by Lightning, so that a run can be continued.

    ``anomaly`` is called at a step that the guard objects to, before the step is counted. It raises where the verdict
    is "stop", and puts an earlier state in the place of this one where it is "rollback".
    """

    def __init__(
        self,
        task: Task,
        *,
        optimizer: Callable[[Task], CompositeOptimizer],
        batch_rows: int,
        progress: Progress,
        shard: Callable[["Pretrain"], None] = lambda module: None,
        restore: Callable[["Pretrain"], None] = lambda module: None,
        anomaly: Callable[["Pretrain"], None] = refuse,
    ):
        super().__init__()
        self.task = task
        self.progress = progress
        self.clock = Clock()
        self.stepped = False  # whether the last batch ended an optimiser step
        self.stopping = False  # whether the run ends after this step, unfinished
        self.routed: tuple[list[Tensor], ...] = ()  # of the last step: see ``_follow_routers``
        self._losses: list[Loss] = []  # of the micro batches of this step
        self._batch_rows = batch_rows
        self._build_optimizer = optimizer
        self._shard = shard
        self._restore, self._anomaly = restore, anomaly
        self.optimizer: CompositeOptimizer

    def configure_model(self) -> None:
        self._shard(self)

    def configure_optimizers(self) -> CompositeOptimizer:
        # here and not earlier: the parameters are now on their device, so moments are made there
        self.optimizer = self._build_optimizer(self.task)
        self.progress.to(self.device)
        self._restore(self)
        return self.optimizer

    def on_train_start(self) -> None:
        self.clock.lap()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not self._losses:
            faults.at("step", self.progress.step)
            heartbeat.beat(self.progress.step, heartbeat.BEGUN)
        loss: Loss = self.task(batch)
        loss = loss._replace(loss=faults.poisoned(loss.loss, "step", self.progress.step))
        self._losses.append(loss)
        self.stepped = False
        return loss.loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        def closure() -> Tensor:
            assert optimizer_closure is not None, "Lightning's automatic optimisation has one"
            optimizer_closure()
            return torch.stack([loss.loss.detach() for loss in self._losses]).mean()  # of all micro batches

        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        verdict = self.optimizer.last.verdict
        if verdict.kind is not None:
            self._anomaly(self)
        if verdict.taken:  # else the means would not be finite either
            for loss in self._losses:
                self.progress.nats += loss.nats.sum(dtype=torch.float64)
                self.progress.counts += loss.counts.sum(dtype=torch.float64)
            self._follow_routers()
            self.progress.cursor = self.progress.cursor.after(self._batch_rows)
        elif verdict.action == "skip":
            self.progress.cursor = self.progress.cursor.past(self.progress.cursor.next(self._batch_rows))
        self._losses.clear()
        if verdict.action == "rollback":
            self.clock.lap()  # the time of a step that never was
            return
        self.progress.seconds += self.clock.lap()
        self.progress.step += 1
        self.stepped = True
        heartbeat.beat(self.progress.step, heartbeat.READY)

    def _follow_routers(self) -> None:
        """Move the routers' biases by the loads of this step, and keep loads, z and numbers of tokens by layer."""
        layers = routers(self.task.model)
        if not layers:
            return
        sums = by_layer(len(layers), [r for loss in self._losses for r in loss.routing])
        totals = over_ranks([part for r in sums for part in (r.counts, r.z, n_tokens(r))])
        self.routed = totals[::3], totals[1::3], totals[2::3]
        update_biases(layers, totals[::3])
