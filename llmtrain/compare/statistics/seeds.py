"""How far seeds of one series lie apart: pooled over series where Bartlett's test does not find that they differ.

Bartlett's (1937) and not Brown and Forsythe's: of 7 series of 3 normal seeds, of which one scatters four times as far,
it finds 57%, and the latter 5%, since one of any three values is their median. Where all are alike it finds 9%.
Longer tails than normal make it find more, which widens intervals.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import chdtrc

from llmtrain.compare.results import Spread
from llmtrain.compare.statistics.estimate import Part

_TEST = "Bartlett"
_ALIKE = 0.1  # from this p on, series are pooled: what is missed makes intervals too narrow

Values = Float[np.ndarray, " _"]  # of one series, by seed


def spread_of(series: Sequence[Values]) -> Spread:
    """Over all series of two seeds or more.

    A series whose seeds are all equal (a probe that always says the commonest class) tells nothing of how far others
    scatter: it is left out, which can only widen what is pooled.
    """
    # told by their range: the variance of three .1 is 3e-34
    found = [values for values in series if len(values) > 1 and np.ptp(values) > 0]
    dof = np.array([len(values) - 1 for values in found])
    variance = np.array([float(values.var(ddof=1)) for values in found])
    if not found:
        return Spread(sd=None, dof=0, pooled=False, p_alike=None, test=_TEST)
    p = bartlett(variance, dof) if len(found) > 1 else None
    pooled = p is None or p >= _ALIKE
    sd = float(np.sqrt((dof * variance).sum() / dof.sum())) if pooled else None
    return Spread(sd=sd, dof=int(dof.sum()) if pooled else 0, pooled=pooled, p_alike=p, test=_TEST)


def bartlett(variance: Float[np.ndarray, " S"], dof: np.ndarray) -> float:
    """The p of equal variances; ``variance`` is positive."""
    total, count = float(dof.sum()), len(variance)
    pooled = float((dof * variance).sum()) / total
    statistic = total * np.log(pooled) - float((dof * np.log(variance)).sum())
    correction = 1 + (float((1 / dof).sum()) - 1 / total) / (3 * (count - 1))
    return float(chdtrc(count - 1, max(0.0, statistic / correction)))  # equal ones may come to -1e-16


def seed_parts(spread: Spread, *series: Values) -> list[Part] | None:
    """The variance of a sum or difference of these series' means that comes of their seeds; none where unknown."""
    if spread.pooled and spread.sd is not None:
        return [Part(spread.sd**2 * sum(1 / len(values) for values in series), spread.dof)]
    if any(len(values) < 2 for values in series):
        return None
    return [Part(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in series]
