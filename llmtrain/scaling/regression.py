"""N*(C) and D*(C) as power laws, through the optima of several budgets."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from llmtrain.scaling.intervals import Interval


@dataclass(frozen=True)
class Line:
    """ln y = offset + slope (ln C - centre), by least squares."""

    centre: float
    offset: float
    slope: float
    covariance: Float[np.ndarray, "2 2"]
    dof: int

    def at(self, flops: float, level: float) -> Interval:
        x = np.array([1.0, np.log(flops) - self.centre])
        log_y = self.offset + self.slope * x[1]
        se = float(np.sqrt(x @ self.covariance @ x))
        width = float(stdtrit(self.dof, 0.5 + level / 2)) * se if self.dof else np.nan
        y = float(np.exp(log_y))
        if not np.isfinite(width):
            return Interval(y, None, None, None)
        return Interval(y, y * se, y * float(np.exp(-width)), y * float(np.exp(width)))

    def exponent(self, level: float) -> Interval:
        se = float(np.sqrt(self.covariance[1, 1]))
        if not self.dof:
            return Interval(self.slope, None, None, None)
        width = float(stdtrit(self.dof, 0.5 + level / 2)) * se
        return Interval(self.slope, se, self.slope - width, self.slope + width)

    @property
    def coefficient(self) -> float:
        """y at one FLOP."""
        return float(np.exp(self.offset - self.slope * self.centre))


def line(
    c: Float[np.ndarray, " b"], y: Float[np.ndarray, " b"], drawn: Float[np.ndarray, "R b"] | None = None
) -> Line:
    """``drawn``: the optima of resampled curves; the larger of their variance and that of the residuals counts."""
    u, v = np.log(c), np.log(y)
    centre = float(u.mean())
    x = np.stack([np.ones_like(u), u - centre], 1)
    pinv = np.linalg.pinv(x)
    found = pinv @ v
    dof = len(v) - 2
    variance = float(((v - x @ found) ** 2).sum() / dof) if dof > 0 else 0.0
    covariance = variance * pinv @ pinv.T
    if drawn is not None and len(drawn) > 1:
        resampled = np.cov(pinv @ np.log(drawn).T)
        if resampled[1, 1] > covariance[1, 1]:
            covariance = resampled
    return Line(centre, float(found[0]), float(found[1]), covariance, max(dof, 0))
