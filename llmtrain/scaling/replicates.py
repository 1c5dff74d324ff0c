"""Noise between runs that differ by their seeds alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from llmtrain.scaling.points import Points


@dataclass(frozen=True)
class Replicates:
    sigma: float | None  # sd of the (log) loss within cells; None where no cell has two runs
    dof: int  # units beyond one a cell; trunks in the same cells count once, however many branches they have
    largest: int  # units of the largest cell
    spare: int = 0  # runs beyond one a cell: what the sum of squares is over

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
    spare = int((runs - 1).sum())
    squares = float(((means - centres[cell]) ** 2).sum())
    pairs = np.zeros((count.size, 2), dtype=int)
    pairs[code] = np.stack([cells, unit], 1)
    dof = _independent(*pairs[runs[cell] > 1].T)
    return Replicates(float(np.sqrt(squares / spare)) if spare else None, dof, int(runs.max()), spare)


def _independent(cell: Int[np.ndarray, " r"], unit: Int[np.ndarray, " r"]) -> int:
    """Units less groups, of units that share cells with one another: two trunks differ once, at each horizon alike."""
    if not len(cell):
        return 0
    _, unit = np.unique(unit, return_inverse=True)
    _, cell = np.unique(cell, return_inverse=True)
    n_units, n_cells = unit.max() + 1, cell.max() + 1
    size = n_units + n_cells
    edges = coo_array((np.ones(len(cell)), (unit, n_units + cell)), shape=(size, size))
    return int(n_units - connected_components(edges, directed=False)[0])
