"""Noise between runs that differ by their seeds alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from llmtrain.scaling.points import Points


@dataclass(frozen=True)
class Replicates:
    sigma: float | None  # sd of the (log) loss within cells; None where no cell has two runs
    dof: int  # runs beyond one a cell
    largest: int  # runs of the largest cell

    @property
    def enough(self) -> bool:
        """Two degrees of freedom, as three runs of one cell have: below, an sd says nothing."""
        return self.sigma is not None and self.dof >= 2


NO_REPLICATES = Replicates(None, 0, 1)


def replicates(points: Points, *, log: bool) -> Replicates:
    return sigma_within(np.log(points.loss) if log else points.loss, points.cells(), points.unit)


def sigma_within(
    y: Float[np.ndarray, " n"], cells: Int[np.ndarray, " n"], unit: Int[np.ndarray, " n"]
) -> Replicates:
    """One value a unit and cell: checkpoints of one run are no replicates of each other."""
    _, code = np.unique(np.stack([cells, unit], 1), axis=0, return_inverse=True)
    code = code.reshape(-1)
    count = np.bincount(code)
    means = np.bincount(code, y) / count
    cell = np.empty(len(count), dtype=int)
    cell[code] = np.unique(cells, return_inverse=True)[1].reshape(-1)
    runs = np.bincount(cell)
    centres = np.bincount(cell, means) / runs
    dof = int((runs - 1).sum())
    squares = float(((means - centres[cell]) ** 2).sum())
    return Replicates(float(np.sqrt(squares / dof)) if dof else None, dof, int(runs.max()))
