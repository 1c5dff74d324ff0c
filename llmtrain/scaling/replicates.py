"""Noise between runs that differ by their seeds alone."""

from dataclasses import dataclass

import numpy as np

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


def replicates(points: Points, *, log: bool) -> Replicates:
    """One value a unit and cell: checkpoints of one run are no replicates of each other."""
    y = np.log(points.loss) if log else points.loss
    cells = points.cells()
    squares, dof, largest = 0.0, 0, 1
    for cell in np.unique(cells):
        here = cells == cell
        values = [y[here & (points.unit == unit)].mean() for unit in np.unique(points.unit[here])]
        largest = max(largest, len(values))
        squares += float(np.var(values) * len(values))
        dof += len(values) - 1
    return Replicates(float(np.sqrt(squares / dof)) if dof else None, dof, largest)
