"""Models trained for some steps: how far each layer's output moved, and the loss that a learning rate ends at."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmtrain.coordinates.check import Case, Question
from llmtrain.coordinates.outputs import Spot, outputs
from llmtrain.data.collate import collate
from llmtrain.data.prepare import Prepared
from llmtrain.nn.routing import by_layer, over_ranks, routers, update_biases
from llmtrain.objectives.base import Loss
from llmtrain.ops import backend
from llmtrain.optim.schedules import Constant, Schedule
from llmtrain.run import Run
from llmtrain.setup import set_up

Say = Callable[[str], None]


class Moved(NamedTuple):
    """Mean |change since the start| of each layer's output, by step."""

    case: Case
    by_step: dict[int, dict[Spot, float]]


class Ended(NamedTuple):
    case: Case
    lr: float
    loss: float  # of rows that were not trained on; infinite where it is no number


def moves(question: Question, prepared: Prepared, say: Say) -> Iterator[Moved]:
    """Of every case along width and depth, at the run's own rates, constant and without warmup.

    Every step is taken, and seen, on one batch: what is learnt of it is the same at any size, where what carries over
    to other rows is not.
    """
    steps = sorted(set(question.check.steps))
    for axis in ("width", "depth"):
        for case in question.cases(axis, question.check.seeds):
            trial = Trial(question.run_of(case), prepared, Constant(warmup=0.0), steps[-1])
            batch = trial.batch(0)
            before, found = outputs(trial.task, batch), {}
            for step in range(1, steps[-1] + 1):
                trial.step(batch)
                if step in steps:
                    after = outputs(trial.task, batch)
                    found[step] = {spot: (after[spot] - before[spot]).abs().mean().item() for spot in before}
            say(f"{case.parametrization} {axis} {case.size} seed {case.seed}")
            yield Moved(case, found)


def ends(question: Question, prepared: Prepared, say: Say) -> Iterator[Ended]:
    """The loss after ``rate_steps`` of every width at every rate, by the run's own schedule."""
    check = question.check
    for case in question.cases("width", check.rate_seeds if check.rates else 0):
        for lr in sorted(set(check.rates)):
            run = question.run_of(case, lr=lr)
            trial = Trial(run, prepared, run.schedule, check.rate_steps)
            for step in range(check.rate_steps):
                trial.step(trial.batch(step))
            loss = trial.held_out(-(-check.rate_rows // run.batch_rows))
            say(f"{case.parametrization} width {case.size} seed {case.seed} lr {lr:g}: {loss:.4f}")
            yield Ended(case, lr, loss)


class Trial:
    """A model in training, step by step; without guard, logs and checkpoints."""

    def __init__(self, run: Run, prepared: Prepared, schedule: Schedule, horizon: int):
        self.run, self.horizon = run, horizon
        setup = set_up(run, prepared)
        self.task = setup.task
        self.examples = setup.examples()
        self.optimizer = run.optim.build(self.task, schedule, horizon)

    def batch(self, step: int) -> Any:
        rows = self.run.batch_rows
        return collate([self.examples[k] for k in range(step * rows, (step + 1) * rows)])

    def step(self, batch: Any) -> None:
        losses: list[Loss] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            losses.append(self._loss(batch))
            losses[-1].loss.backward()
            return losses[-1].loss

        self.optimizer.step(closure)
        if layers := routers(self.task.model):
            update_biases(
                layers, over_ranks([r.counts for r in by_layer(len(layers), [*losses[-1].routing])])
            )

    @torch.no_grad()
    def held_out(self, batches: int) -> float:
        """The mean loss of rows beyond those trained on, the same at every rate and width."""
        self.task.eval()
        found = [self._loss(self.batch(self.horizon + i)).loss.item() for i in range(batches)]
        self.task.train()
        return statistics.fmean(found)

    def _loss(self, batch: Any) -> Loss:
        with backend.force(**self.run.trainer.kernels):
            loss: Loss = self.task(batch)
        return loss
