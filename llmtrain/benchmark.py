"""A training step taken apart by the clock, in turn with the matrix product that it is measured against."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from llmtrain.accounting import timed_product
from llmtrain.batch import split_batch
from llmtrain.callbacks.base import AfterStep
from llmtrain.callbacks.loggers.base import Sink
from llmtrain.callbacks.metrics import Metrics, Work
from llmtrain.data.examples import RankRows, loader
from llmtrain.errors import ConfigError
from llmtrain.lit import Pretrain, Progress
from llmtrain.ops import backend
from llmtrain.outcome import peak_memory
from llmtrain.rivals import Elsewhere
from llmtrain.setup import Setup
from llmtrain.trainer import DTYPES

WARMUP = 3  # steps that are not counted
PHASES = ("forward", "backward", "optimizer", "data", "framework")


@dataclass
class Benchmark:
    """Medians over the counted steps; ``mfu`` is a ratio of medians taken in turn, so that drift hits both."""

    tokens_per_second: float
    mfu: float
    matmul_flops_per_second: float  # of a large product at the precision of the step
    peak_memory_bytes: int
    seconds: dict[str, float]  # of each phase of a step
    precision: str
    n: int  # parameters
    flops_per_step: int  # as counted: attention in full
    rows_per_second: float  # of the loader alone
    baselines: dict[str, float]  # tokens per second of the public models that were timed in turn

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def bench(setup: Setup, *, steps: int, against: bool = False) -> Benchmark:
    """Time ``steps`` optimiser steps of the run through the real trainer, each followed by a matrix product.

    ``framework`` is what a step takes beyond its other phases: Lightning, callbacks and logging. With ``against``
    the public models of the run's kind and shape are stepped in turn with ours, in a process of their own.
    """
    run = setup.run
    if run.trainer.world > 1 or run.trainer.sharded:
        raise ConfigError(
            "a benchmark is of one process with the whole model: set trainer=default, and leave trainer.devices and "
            "trainer.nodes at 1"
        )
    run.trainer.configure()
    accumulate, micro_rows = split_batch(run)
    device = torch.device("cuda" if run.trainer.on_gpu else "cpu")
    times = Times(device)
    others = Elsewhere(run) if against else None
    work = Work(setup.raw_per_row, setup.flops, 1.0)
    metrics = Metrics([_Nowhere()], work, every=run.trainer.log_every, horizon=WARMUP + steps)
    between = Between(times, DTYPES[run.trainer.chosen_precision()], others)
    trainer = run.trainer.lightning(accumulate=accumulate, callbacks=[metrics, between])
    module = TimedPretrain(
        setup.task,
        optimizer=lambda task: run.optim.build(task, run.schedule, setup.horizon),
        batch_rows=run.batch_rows,
        progress=Progress(),
    )
    module.times = times
    end = (WARMUP + steps) * run.batch_rows
    rows = RankRows(n_rows=end, micro_rows=micro_rows, rank=0, world=run.trainer.world)
    batches = loader(setup.examples(), rows, workers=run.data.loader_workers)
    if run.trainer.compile:
        setup.task.compile()
    try:
        with backend.force(**run.trainer.kernels):
            trainer.fit(module, TimedBatches(batches, times))
    finally:
        if others is not None:
            others.close()
    seconds = {} if others is None else others.seconds
    phases = times.medians()
    step = statistics.median(times.step[WARMUP:])
    product = 2 * between.width**3 / statistics.median(between.products[WARMUP:])
    tokens = run.batch_rows * setup.raw_per_row
    flops = run.batch_rows * setup.flops.counter
    return Benchmark(
        tokens_per_second=tokens / step,
        mfu=flops / step / product,
        matmul_flops_per_second=product,
        peak_memory_bytes=peak_memory(device),
        seconds=phases | {"framework": step - sum(phases.values())},
        precision=run.trainer.chosen_precision(),
        n=setup.size.total,
        flops_per_step=flops,
        rows_per_second=_loader_speed(setup, micro_rows),
        baselines={name: tokens / statistics.median(s[WARMUP:]) for name, s in seconds.items()},
    )


class Times:
    """Seconds by phase and step; a GPU is waited for at every edge."""

    def __init__(self, device: torch.device):
        self.device = device
        self.step: list[float] = []
        self._phases: dict[str, list[float]] = defaultdict(list)
        self._open: dict[str, float] = defaultdict(float)
        self._last: float | None = None

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, phase: str, seconds: float) -> None:
        self._open[phase] += seconds

    def end_step(self) -> None:
        now = self.now()
        if self._last is not None:
            self.step.append(now - self._last)
            for phase in PHASES[:-1]:
                self._phases[phase].append(self._open[phase])
        self._open.clear()

    def begin_step(self) -> None:
        self._last = self.now()

    def medians(self) -> dict[str, float]:
        return {phase: statistics.median(seconds[WARMUP:]) for phase, seconds in self._phases.items()}


class TimedPretrain(Pretrain):
    times: Times

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        start = self.times.now()
        loss = super().training_step(batch, batch_idx)
        self.times.add("forward", self.times.now() - start)
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        self._backward = self.times.now()

    def on_after_backward(self) -> None:
        self.times.add("backward", self.times.now() - self._backward)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        inner = optimizer.step

        def step(closure: Callable[[], Any] | None = None) -> Any:
            spent = 0.0

            def timed() -> Any:
                nonlocal spent
                start = self.times.now()
                loss = closure() if closure is not None else None
                spent = self.times.now() - start
                return loss

            start = self.times.now()
            out = inner(timed)
            self.times.add("optimizer", self.times.now() - start - spent)
            return out

        optimizer.step = step  # type: ignore[method-assign]
        return optimizer


class TimedBatches:
    """A loader whose every batch is timed."""

    def __init__(self, batches: Any, times: Times):
        self._batches, self._times = batches, times

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        source = iter(self._batches)
        while True:
            start = self._times.now()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._times.add("data", self._times.now() - start)
            yield batch


class Between(AfterStep):
    """After every step, outside its time: one matrix product, and one step of each public model."""

    def __init__(self, times: Times, dtype: torch.dtype, others: Elsewhere | None):
        self.times, self.others = times, others
        self.products: list[float] = []
        self.width = (
            8192 if times.device.type == "cuda" else 2048
        )  # a GPU is done with a small one before it is asked
        self._a, self._b = (torch.randn(2 * [self.width], device=times.device).to(dtype) for _ in range(2))

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.times.begin_step()

    def after_step(self, trainer: Any, module: Pretrain) -> None:
        self.times.end_step()
        self.products.append(timed_product(self._a, self._b))
        if self.others is not None:
            self.others.step()
        self.times.begin_step()


class _Nowhere(Sink):
    def log(self, row: dict[str, Any]) -> None:
        """Rows are made as in training, and dropped."""


def _loader_speed(setup: Setup, micro_rows: int) -> float:
    n = micro_rows * max(4, 3200 // micro_rows)  # a batch of thousands is not drawn 200 times
    rows = RankRows(n_rows=n, micro_rows=micro_rows, rank=0, world=1)
    batches: Iterable[Any] = loader(setup.examples(), rows, workers=0)
    start = time.perf_counter()
    for _ in batches:
        pass
    return n / (time.perf_counter() - start)
