"""What a person sees of a run: a live bar on a terminal, a line each logged step elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmtrain.callbacks.loggers.base import Sink


def duration(seconds: float) -> str:
    """As 1:02:03, or 2:03 under an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def describe(row: dict[str, Any], left: float | None) -> str:
    """A row of metrics in a few words; rows of scores have their own names."""
    if "loss" not in row:
        return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")
    loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"  # no step was taken since the row before
    text = f"loss {loss}  {row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.1%}"
    return text if left is None else f"{text}  {duration(left)} left"


class _Left:
    """Time left, from the pace since the first row of this start."""

    def __init__(self, horizon: int):
        self.horizon = horizon
        self.first_step = 0
        self.first_seconds: float | None = None

    def after(self, row: dict[str, Any]) -> float | None:
        if self.first_seconds is None:
            self.first_step, self.first_seconds = row["step"], row["seconds"]
            return None
        done = row["step"] - self.first_step
        return (row["seconds"] - self.first_seconds) / done * (self.horizon - row["step"]) if done else None


class Lines(Sink):
    """Off a terminal: one line for each row."""

    def __init__(self, horizon: int):
        self.horizon, self._left = horizon, _Left(horizon)

    def log(self, row: dict[str, Any]) -> None:
        left = self._left.after(row) if "loss" in row else None
        print(f"step {row['step']}/{self.horizon}  {describe(row, left)}", flush=True)


class Bar(Sink):
    """On a terminal: one bar that stays in place; scores are printed above it."""

    def __init__(self, horizon: int, step: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._left = _Left(horizon)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, refresh_per_second=4)
        self._task = self._bar.add_task("starting", total=horizon, completed=step)
        self._bar.start()

    def log(self, row: dict[str, Any]) -> None:
        if "loss" in row:
            self._bar.update(
                self._task, completed=row["step"], description=describe(row, self._left.after(row))
            )
        else:
            self._bar.console.print(f"step {row['step']}  {describe(row, None)}", highlight=False)

    def close(self) -> None:
        self._bar.stop()


@contextmanager
def preparing(*, show: bool) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """A callback (stage, done, total) for the preparation of data: a bar on a terminal, elsewhere a line a stage."""
    if not show:
        yield None
        return
    if not sys.stdout.isatty():
        yield _StageLines()
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report


class _StageLines:
    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage != self._stage:
            self._stage = stage
            print(f"preparing: {stage}", flush=True)


def display(horizon: int, step: int) -> Sink:
    return Bar(horizon, step) if sys.stdout.isatty() else Lines(horizon)
