"""An estimate whose variance is a sum of independent parts: its interval, its p and what it could detect."""

from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import nctdtr, stdtr, stdtrit

from llmtrain.compare.results import Estimate

LEAST_DOF = 5.0  # under it no p value: a t with fewer is too sensitive to what seeds are not, normal
_HALVINGS = 60


class Part(NamedTuple):
    """A variance that was itself estimated, from ``dof`` independent values and one."""

    variance: float
    dof: float
    uncertainty: float | None = None  # half of the estimate's own variance; none: variance^2 / dof


def estimate(value: float, parts: Sequence[Part] | None, level: float) -> Estimate:
    """With Student's t at Satterthwaite's (1946) degrees of freedom; without an interval where ``parts`` is none."""
    if parts is None:
        return Estimate(value=value)
    variance = sum(part.variance for part in parts)
    if variance == 0:
        return Estimate(value=value, se=0.0, lo=value, hi=value)
    dof = max(variance**2 / sum(_uncertainty(part) for part in parts), min(part.dof for part in parts))
    se = variance**0.5
    width = float(stdtrit(dof, 0.5 + level / 2)) * se
    return Estimate(value=value, se=se, lo=value - width, hi=value + width, dof=dof)


def _uncertainty(part: Part) -> float:
    return part.variance**2 / part.dof if part.uncertainty is None else part.uncertainty


def p_value(found: Estimate) -> float | None:
    """Of a true value of 0, two-sided; none where it would rest on too little."""
    if not found.se or found.dof is None or found.dof < LEAST_DOF:
        return None
    return 2 * float(stdtr(found.dof, -abs(found.value) / found.se))


def detectable(found: Estimate, *, alpha: float, power: float = 0.8) -> float | None:
    """The smallest true value that a two-sided test at ``alpha`` shows with a probability of ``power``."""
    if not found.se or found.dof is None:
        return None
    critical = float(stdtrit(found.dof, 1 - alpha / 2))
    low, high = 0.0, 2.0 * critical + 20.0  # in standard errors
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # the far tail shows the wrong sign; it is not counted
        low, high = (middle, high) if 1 - nctdtr(found.dof, middle, critical) < power else (low, middle)
    return high * found.se
