"""A cell: what one run of a sweep shall be, then what it comes to, and the words of train.py that make it."""

from enum import StrEnum
from typing import NamedTuple

from llmtrain.config import config


class Role(StrEnum):
    CELL = "cell"  # is fitted
    TUNE = "tune"  # a learning rate, or a batch, that is tried
    HELD_OUT = "held_out"  # is predicted, then trained
    TRUNK = "trunk"  # of a ladder
    BRANCH = "branch"  # of a trunk, decayed at its own horizon; is fitted
    CHECK = "check"  # a fresh run of a branch's length


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
    notes: tuple[str, ...] = ()  # limits that it does not keep
    words: tuple[str, ...]  # of train.py, all but those of the sweep's folder

    def command(self, runs: str, *more: str) -> list[str]:
        """The words of train.py, without its name."""
        rate = [] if self.lr is None else [f"optim.lr={self.lr:.6g}"]
        labels = [f"labels.cell={self.id}", f"labels.series={self.series}"]
        return [*self.words, *rate, *labels, f"name={self.id}", f"runs={runs}", *more]
