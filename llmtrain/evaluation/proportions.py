"""Intervals at 95% of shares, and whether one is told from chance."""

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # of a two-sided 95% interval
LIKE_CHANCE = "not distinguishable from chance"


def wilson(share: float, n: int) -> tuple[float, float]:
    """Of ``n`` independent items (Wilson 1927); with ties that count one half it is a little too wide."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def over_groups(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the mean of groups, which are the independent units: Student's t; none under two groups."""
    n = len(values)
    if n < 2:
        return None
    from scipy import stats

    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean - half, mean + half


def said(interval: tuple[float, float] | None, chance: float) -> str:
    """What a reader must know of an interval, if anything."""
    return LIKE_CHANCE if interval is not None and interval[0] <= chance <= interval[1] else ""
