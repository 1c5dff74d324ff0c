"""Standard errors and intervals of anything that is a function of the law: by resamples, or by the delta method."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from llmtrain.scaling.law import Law
from llmtrain.scaling.resample import FEW, Draws

Function = Callable[[np.ndarray], dict[str, np.ndarray]]  # of theta [S p]: named values [S]
STEP = 1e-5  # of a central difference, in units of theta (logarithms and exponents)


@dataclass(frozen=True)
class Interval:
    value: float
    se: float | None  # None where there is no interval
    lo: float | None
    hi: float | None


def intervals(
    law: Law, draws: Draws, of: Function, level: float, *, ratio: bool = False
) -> dict[str, Interval]:
    """Percentiles of the resamples where there are some, else the delta method with Student's t.

    Percentiles of few units' resamples are the normal's, whose noise is as well known as that of many: their distance
    from the median grows by t over z. Where resamples are withheld there is no interval. ``ratio``: positive
    quantities, whose delta interval is symmetric in the logarithm.
    """
    values = {name: float(v[0]) for name, v in of(law.theta[None]).items()}
    if draws.withheld:
        return {name: Interval(value, None, None, None) for name, value in values.items()}
    if len(draws.theta):
        wider = _wider(law, level) if draws.how in FEW else 1.0
        found = {}
        for name, drawn in of(draws.theta).items():
            there = drawn[np.isfinite(drawn)]  # a law may have no optimum
            if len(there) < 2 or not np.isfinite(values[name]):
                found[name] = Interval(values[name], None, None, None)
                continue
            lo, hi = _ends(np.log(there) if ratio else there, level, wider)
            if ratio:
                lo, hi = np.exp(lo), np.exp(hi)
            found[name] = Interval(values[name], float(there.std(ddof=1)), float(lo), float(hi))
        return found
    t = float(stdtrit(law.dof, 0.5 + level / 2))
    steps = STEP * np.eye(len(law.theta))
    up, down = of(law.theta + steps), of(law.theta - steps)
    return {
        name: delta_interval(law, value, up[name], down[name], t, ratio=ratio)
        for name, value in values.items()
    }


def _ends(drawn: np.ndarray, level: float, wider: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    lo, middle, hi = np.percentile(drawn, [tail, 50, 100 - tail])
    return middle - wider * (middle - lo), middle + wider * (hi - middle)


def _wider(law: Law, level: float) -> float:
    return float(stdtrit(law.dof, 0.5 + level / 2) / ndtri(0.5 + level / 2))


def delta_interval(
    law: Law, value: float, up: np.ndarray, down: np.ndarray, t: float, *, ratio: bool = True
) -> Interval:
    """From what the value is where each entry of theta is one ``STEP`` up, and down."""
    if ratio:
        up, down = np.log(up), np.log(down)
    gradient = (up - down) / (2 * STEP)
    moves = np.diag(law.covariance) > 0
    se = float(np.sqrt(law.variance(np.where(moves, gradient, 0.0)[None])[0]))
    if not np.isfinite(se):
        return Interval(value, None, None, None)
    if ratio:
        return Interval(value, se * value, value * float(np.exp(-t * se)), value * float(np.exp(t * se)))
    return Interval(value, se, value - t * se, value + t * se)
