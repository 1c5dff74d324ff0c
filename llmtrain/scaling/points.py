"""What a fit is made from: runs as columns of numbers, with what is known of where they come from."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from llmtrain.errors import DataError
from llmtrain.scaling.flops import Convention

Column = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Excluded:
    """A run that is not in a fit, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class About:
    """What all runs of a fit share; where two fits are compared it must be the same."""

    source: str  # a folder of runs or a CSV file, which is a table
    sha256: str  # of what was read there
    series: str = "all"
    score: str = "loss"  # its name
    score_unit: str = ""
    eval_hash: str = ""
    n_convention: str = "as given"
    corpus: str = ""
    tokenizer: str = ""
    python: str = ""
    tokens_unit: str = "tokens"  # or pairs
    table: bool = False  # then score and n_convention are names of columns alone


@dataclass(frozen=True)
class Points:
    """Runs as columns, [n] each; a column that the source does not have is missing from ``x``."""

    x: dict[str, Column]  # n parameters, d tokens (or pairs), c FLOPs; experts, unique: what a form may need
    loss: Column
    weight: Column
    run: Shaped[np.ndarray, " n"]  # names
    unit: Int[np.ndarray, " n"]  # what is independent: the run, or the trunk that several branch from
    unit_name: str  # run or trunk
    convention: Convention
    about: About
    excluded: tuple[Excluded, ...] = ()
    more: dict[str, Column] = field(default_factory=dict)  # epochs, lr, warmup: what warnings look at

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def n_units(self) -> int:
        return len(np.unique(self.unit))

    def keep(self, kept: Bool[np.ndarray, " n"], reason: str) -> "Points":
        """Those runs; the others join the excluded."""
        if kept.all():
            return self
        out = tuple(Excluded(str(name), reason) for name in self.run[~kept])
        return replace(
            self,
            x={key: column[kept] for key, column in self.x.items()},
            loss=self.loss[kept],
            weight=self.weight[kept],
            run=self.run[kept],
            unit=self.unit[kept],
            excluded=self.excluded + out,
            more={key: column[kept] for key, column in self.more.items()},
        )

    def require(self, names: Iterable[str], why: str) -> None:
        for name in names:
            if name not in self.x:
                raise DataError(
                    f"{self.about.source}: {why} needs {_SAID.get(name, name)}; {_WAYS.get(name, '')}"
                )

    def cells(self) -> Int[np.ndarray, " n"]:
        """Runs of one cell have equal inputs: they are replicates, and differ by their seeds alone."""
        columns = np.stack([np.log(self.x[key]) for key in sorted(self.x)], 1).round(6)
        return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)


def planned(x: dict[str, Column], convention: Convention) -> Points:
    """Runs that are not there yet, each independent: inputs without losses, for simulations."""
    count = len(next(iter(x.values())))
    return Points(
        x=x,
        loss=np.ones(count),
        weight=np.ones(count),
        run=np.array([f"cell {i}" for i in range(count)]),
        unit=np.arange(count),
        unit_name="run",
        convention=convention,
        about=About(source="plan", sha256=""),
    )


_SAID = {"n": "the parameters N", "d": "the tokens D", "c": "the FLOPs C", "unique": "the unique tokens"}
_WAYS = {
    "n": "name their column with --n",
    "d": "name their column with --d, or give --n and --c (then D = C/6N)",
    "c": "name their column with --c, or give --n and --d (then C = 6ND)",
    "experts": "name their column with --experts",
    "unique": "name their column with --unique",
}


def without_copies(points: Points) -> Points:
    """Without runs that stand there again, by name, inputs and loss: a copy is no replicate, and tells no noise."""
    columns = [*points.x.values(), points.loss]
    rows = list(zip(points.run.tolist(), *(column.tolist() for column in columns), strict=True))
    first = {row: i for i, row in reversed(list(enumerate(rows)))}
    kept = np.array([first[row] == i for i, row in enumerate(rows)])
    return points.keep(kept, "it stands there twice")


def without_highest_loss(points: Points, k: int) -> Points:
    """Without the k runs of the highest loss (and those that tie with the last of them)."""
    if k <= 0:
        return points
    if k >= len(points):
        raise DataError(f"--drop-highest-loss {k} leaves none of {len(points)} points")
    bound = np.sort(points.loss)[-k]
    return points.keep(points.loss < bound, f"one of the {k} highest losses")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
