"""A cell: what one run of a sweep shall be, then what it comes to, and the words of train.py that make it."""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from llmtrain.config import config


class Role(StrEnum):
    CELL = "cell"  # is fitted
    TUNE = "tune"  # a learning rate, or a batch, that is tried
    HELD_OUT = "held_out"  # is predicted, then trained
    TRUNK = "trunk"  # of a ladder
    BRANCH = "branch"  # of a trunk, decayed at its own horizon; is fitted
    CHECK = "check"  # a fresh run of a branch's length

    @property
    def folder(self) -> str:
        """Within the sweep's: what is fitted lies apart, so that a fit of that folder is a fit of nothing else."""
        return "cells" if self in FITTED else f"{self.value}s" if self is not Role.HELD_OUT else self.value


FITTED = frozenset({Role.CELL, Role.BRANCH})


class Target(NamedTuple):
    """A cell before its width is solved for."""

    role: Role
    series: str
    n: float  # parameters, as fits count them
    flops: float  # model FLOPs of the whole run
    seed: int
    tokens: float | None = None  # the length, where it is not that of ``flops``


@config
class Cell:
    """One run of a plan."""

    id: str  # its folder's name
    role: Role
    series: str
    seed: int
    n: int  # parameters, as fits count them
    d_model: int
    tokens: int  # raw tokens
    flops: int  # model FLOPs
    steps: int
    batch_rows: int
    lr: float | None = None  # none: from the rule that the tuning will give
    epochs: float
    seconds: float | None = None  # expected, on one worker
    memory: int | None = (
        None  # bytes, expected at the peak of a step, without what Python and its libraries take
    )
    notes: tuple[str, ...] = ()  # limits that it does not keep
    origin: str | None = None  # TRUNK@STEP that it branches from
    words: tuple[str, ...]  # of train.py, all but those of the sweep's folder

    @property
    def own_share(self) -> float:
        """Of its steps, those that it trains itself: a branch goes on from its trunk."""
        return 1.0 if self.origin is None else 1 - int(self.origin.partition("@")[2]) / self.steps

    def run(self, sweep: Path) -> Path:
        """The folder of its run, within that of the sweep."""
        return sweep / self.role.folder / self.id

    def command(self, sweep: Path) -> list[str]:
        """The words of train.py, without its name."""
        words = [*self.words, f"labels.cell={self.id}", f"labels.series={self.series}"]
        if self.lr is not None:
            words.append(f"optim.lr={self.lr:.6g}")
        if self.origin is not None:
            words.append(f"init_from={sweep / Role.TRUNK.folder / self.origin}")
        return [*words, f"name={self.id}", f"runs={sweep / self.role.folder}"]
