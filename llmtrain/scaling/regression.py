"""N*(C) and D*(C) as power laws, through the optima of several budgets."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from llmtrain.scaling.intervals import Interval


@dataclass(frozen=True)
class Line:
    """ln y = offset + slope (ln C - centre), by least squares.

    Its variance anywhere is the larger of two: that of the scatter of the optima around it, and that of the noise of
    the curves that they are the minima of. Few optima tell their own scatter badly.
    """

    centre: float
    offset: float
    slope: float
    covariance: Float[np.ndarray, "2 2"]  # by the scatter around the line
    noise: Float[np.ndarray, "2 2"]  # by that of the runs around their curves; zeros where it is not known
    dof: int

    def at(self, flops: float, level: float) -> Interval:
        x = np.array([1.0, np.log(flops) - self.centre])
        log_y = self.offset + self.slope * x[1]
        se = self._se(x)
        width = float(stdtrit(self.dof, 0.5 + level / 2)) * se if self.dof else np.nan
        y = float(np.exp(log_y))
        if not np.isfinite(width):
            return Interval(y, None, None, None)
        return Interval(y, y * se, y * float(np.exp(-width)), y * float(np.exp(width)))

    def exponent(self, level: float) -> Interval:
        se = self._se(np.array([0.0, 1.0]))
        if not self.dof:
            return Interval(self.slope, None, None, None)
        width = float(stdtrit(self.dof, 0.5 + level / 2)) * se
        return Interval(self.slope, se, self.slope - width, self.slope + width)

    def _se(self, x: Float[np.ndarray, " 2"]) -> float:
        return float(np.sqrt(max(x @ self.covariance @ x, x @ self.noise @ x)))

    @property
    def coefficient(self) -> float:
        """y at one FLOP."""
        return float(np.exp(self.offset - self.slope * self.centre))


def line(
    c: Float[np.ndarray, " b"], y: Float[np.ndarray, " b"], noise: Float[np.ndarray, " b"] | None = None
) -> Line:
    """``noise``: the variance of each ln y by the noise of its own curve, independent of the others'."""
    u, v = np.log(c), np.log(y)
    centre = float(u.mean())
    x = np.stack([np.ones_like(u), u - centre], 1)
    pinv = np.linalg.pinv(x)
    found = pinv @ v
    dof = len(v) - 2
    variance = float(((v - x @ found) ** 2).sum() / dof) if dof > 0 else 0.0
    of_noise = np.zeros((2, 2)) if noise is None else (pinv * noise) @ pinv.T
    return Line(centre, float(found[0]), float(found[1]), variance * pinv @ pinv.T, of_noise, max(dof, 0))
