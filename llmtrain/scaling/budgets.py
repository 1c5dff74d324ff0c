"""Which runs share a budget."""

import numpy as np
from jaxtyping import Float, Int

_SAME = 0.05  # relative: FLOPs nearer than that are one budget's
_MANY = 30  # distinct budgets: beyond it compute is a continuum


def budgets(c: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The number of each run's budget, in rising order; a gap of 5% separates two."""
    order = np.argsort(c, kind="stable")
    number = np.zeros(len(c), dtype=int)
    number[order[1:]] = np.cumsum(np.diff(np.log(c[order])) > np.log1p(_SAME))
    return number


def steps(c: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Budgets, or half decades where compute has no steps of its own."""
    found = budgets(c)
    counts = np.bincount(found)
    if len(counts) <= _MANY and np.median(counts) >= 2:
        return found
    half = np.floor(2 * np.log10(c / c.min()) + 1e-9).astype(int)
    return np.unique(half, return_inverse=True)[1]
