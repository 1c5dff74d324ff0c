"""What the middle cell of a grid settles for all: the precision, the batch, and how far runs scatter by their seeds."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmtrain.run_folder import write_text
from llmtrain.sweep.cells import Cell, Role, Target
from llmtrain.sweep.count import Series
from llmtrain.sweep.settings import BatchTest, Sweep
from llmtrain.sweep.timing import pace

BATCH, NOISE = "batch.json", "noise.json"
PRECISIONS = ("fp32", "bf16")
FASTER = 0.95  # of float32's time that bfloat16 must stay under: it is less exact


def middle(cells: Sequence[Cell]) -> Cell:
    """The cell of the first seed that is nearest to the middle of ln N and ln D."""
    first = min(c.seed for c in cells)
    found = [c for c in cells if c.seed == first]
    places = np.log([[c.n, c.tokens] for c in found])
    low, high = places.min(0), places.max(0)
    scaled = (places - low) / np.where(high > low, high - low, 1.0)
    return found[int(np.argmin(((scaled - 0.5) ** 2).sum(1)))]


# precision


def step_seconds(series: Mapping[str, Series], cells: Sequence[Cell], threads: int) -> dict[str, float]:
    """By precision, the seconds of a step of the middle cell, summed over the series that leave it to the machine.

    Empty where none does.
    """
    found = dict.fromkeys(PRECISIONS, 0.0)
    free = [name for name, one in series.items() if one.run.trainer.precision == "auto"]
    for name in free:
        cell = middle([c for c in cells if c.series == name])
        for precision in PRECISIONS:
            words = (*cell.words, f"trainer.precision={precision}")
            found[precision] += pace(series[name].prepared, words, threads).step
    return found if free else {}


def faster(seconds: Mapping[str, float]) -> str:
    return "bf16" if seconds["bf16"] < FASTER * seconds["fp32"] else "fp32"


# batch


def batch_trials(
    sweep: Sweep, test: BatchTest, series: Mapping[str, Series], cells: Sequence[Cell]
) -> dict[int, tuple[Cell, ...]]:
    """By how many times the config's batch, the middle cell of each series with each seed; empty where none is larger.

    A batch that would leave a cell fewer steps than the limits ask for is not tried.
    """
    enough = [c.steps for c in cells if c.steps >= sweep.limits.least_steps]
    factors = [2**k for k in range(1, test.doublings + 1)]
    factors = [f for f in factors if all(steps / f >= sweep.limits.least_steps for steps in enough)]
    if not factors:
        return {}
    return {
        f: tuple(
            _at_batch(sweep, test, one, middle([c for c in cells if c.series == name]), f, seed)
            for name, one in series.items()
            for seed in test.seeds
        )
        for f in (1, *factors)
    }


def _at_batch(sweep: Sweep, test: BatchTest, series: Series, at: Cell, factor: int, seed: int) -> Cell:
    rows = series.run.batch_rows * factor
    target = Target(Role.TUNE, series.name, float(at.n), float(at.flops), seed)
    cell = series.cell(target, sweep.limits, batch_rows=rows)
    lr = (sweep.tuning.first if sweep.tuning.rates > 1 else series.run.optim.lr) * factor**test.power
    return sweep.alone(dataclasses.replace(cell, id=f"{cell.id}-b{rows}", lr=lr, seconds=at.seconds))


def best_batch(losses: Mapping[int, Mapping[str, Sequence[float]]], sd: float) -> int:
    """The largest of the batches, each by its factor, that no series is worse for than its noise allows.

    ``losses`` of each batch, series and seed. A mean of k seeds' ln loss has the standard error sd / sqrt(k), so the
    difference of two has sqrt(2 / k) sd; with three seeds or more, sd is that of the seeds where it is larger. A
    doubling is taken only where the one before was.
    """
    chosen = 1
    for factor in sorted(losses)[1:]:
        pairs = [(losses[chosen][name], losses[factor][name]) for name in losses[factor]]
        if not all(_no_worse(np.log(one), np.log(other), sd) for one, other in pairs):
            break
        chosen = factor
    return chosen


def _no_worse(one: np.ndarray, other: np.ndarray, sd: float) -> bool:
    if not np.isfinite(other).all():
        return False
    k = len(one)
    if k >= 3 and np.isfinite(one).all():
        sd = max(sd, math.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2))
    return bool(other.mean() - one.mean() <= sd * math.sqrt(2 / k))


def write_batch(
    folder: Path, losses: Mapping[int, Mapping[str, Sequence[float]]], chosen: int, sd: float
) -> None:
    """What was tried, by times the config's batch, and the loss of each series and seed; none: it diverged."""
    plain = {
        str(factor): {name: [x if math.isfinite(x) else None for x in each] for name, each in series.items()}
        for factor, series in losses.items()
    }
    found = {"losses": plain, "seed_sd": sd, "chosen": chosen}
    write_text(folder / BATCH, json.dumps(found, indent=1) + "\n")


# noise


def replicates(sweep: Sweep, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The middle cell of each series with each seed of ``sweep.noise``; those that the grid has are the grid's."""
    found = []
    for name in sweep.series if sweep.noise else ():
        at = middle([c for c in cells if c.series == name])
        for seed in sweep.noise.seeds if sweep.noise else ():
            words = tuple(f"seed={seed}" if word == f"seed={at.seed}" else word for word in at.words)
            name_of = at.id.removesuffix(f"seed{at.seed}") + f"seed{seed}"
            role = at.role if at.role is Role.CELL and seed in sweep.seeds else Role.TUNE
            cell = dataclasses.replace(at, id=name_of, role=role, seed=seed, words=words)
            found.append(cell if role is Role.CELL else sweep.alone(cell))
    return tuple(found)


def write_noise(folder: Path, losses: Mapping[str, Sequence[float]]) -> float | None:
    """The sd of ln loss between seeds, pooled over the series; none where not three finite runs of one are left."""
    logs = [np.log([x for x in each if math.isfinite(x)]) for each in losses.values()]
    logs = [each for each in logs if len(each) >= 3]
    dof = sum(len(each) - 1 for each in logs)
    sd = math.sqrt(sum(((each - each.mean()) ** 2).sum() for each in logs) / dof) if dof else None
    plain = {name: [x if math.isfinite(x) else None for x in each] for name, each in losses.items()}
    write_text(folder / NOISE, json.dumps({"seed_sd": sd, "dof": dof, "losses": plain}, indent=1) + "\n")
    return sd


def measured_noise(folder: Path) -> float | None:
    path = folder / NOISE
    return json.loads(path.read_text(encoding="utf-8"))["seed_sd"] if path.exists() else None
