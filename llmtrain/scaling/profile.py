"""The profile likelihood of the irreducible loss E: how well the data tell it from a slow power."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from llmtrain.scaling.estimate import Estimate, Problem
from llmtrain.scaling.huber import inside, psi
from llmtrain.scaling.newton import Data

_POINTS = 61
_FAR = 4.0  # times the rise that the interval allows
_NAME = "E"


@dataclass(frozen=True)
class Profile:
    """The lowest objective at each E; lo and hi where it has risen by what the level allows, None where it does not."""

    values: Float[np.ndarray, " k"]
    objective: Float[np.ndarray, " k"]
    allowed: float
    lo: float | None
    hi: float | None

    def near(self) -> Float[np.ndarray, " k"]:
        """The E at which the objective has not risen far: what a figure shows."""
        least = self.objective.min()
        return self.values[self.objective <= least + _FAR * (self.allowed - least)]


def profile_of_offset(
    problem: Problem,
    found: Estimate,
    loss: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    level: float,
) -> Profile | None:
    """None where the form has no free E."""
    if _NAME not in problem.form.parameters or _NAME in problem.fixed:
        return None
    at = problem.form.at(_NAME)
    best = float(np.exp(found.theta[at]))
    held = Problem(problem.form, problem.model, problem.fixed | {_NAME: 0.0}, problem.log)

    def lowest(values: np.ndarray) -> np.ndarray:
        start = np.repeat(found.theta[None], len(values), 0)
        start[:, at] = np.log(values)
        return held.solve(Data(loss[None], weight[None]), start, found.deltas).objective

    allowed = found.objective + _rise(problem, found, weight, level)
    values = np.unique(np.append(np.linspace(0.0, float(loss.min()), _POINTS)[1:-1], best))
    objective = lowest(values)
    wanted = np.flatnonzero(
        (objective <= found.objective + _FAR * (allowed - found.objective)) | (values == best)
    )
    first, last = max(0, wanted[0] - 1), min(len(values) - 1, wanted[-1] + 1)
    finer = np.linspace(values[first], values[last], _POINTS)
    values, order = np.unique(np.concatenate([values, finer]), return_index=True)
    objective = np.concatenate([objective, lowest(finer)])[order]
    low, high = _crossings(values, objective, allowed, best)
    return Profile(values, objective, allowed, low, high)


def _rise(problem: Problem, found: Estimate, weight: np.ndarray, level: float) -> float:
    """Of the objective, at the end of the interval: t^2/2 times the residual variance, as Huber's loss sees it."""
    spare = len(weight) - problem.n_free
    t = float(stdtrit(spare, 0.5 + level / 2))
    variance = float((weight * psi(found.residuals, found.delta) ** 2).sum() / spare)
    slope = float(np.average(inside(found.residuals, found.delta), weights=weight))
    return 0.5 * t**2 * variance / max(slope, problem.n_free / len(weight))


def _crossings(
    values: np.ndarray, objective: np.ndarray, allowed: float, best: float
) -> tuple[float | None, float | None]:
    above = objective > allowed

    def between(i: int, j: int) -> float:
        share = (allowed - objective[i]) / (objective[j] - objective[i])
        return float(values[i] + share * (values[j] - values[i]))

    below = np.flatnonzero(above & (values < best))
    over = np.flatnonzero(above & (values > best))
    return (
        between(int(below[-1]) + 1, int(below[-1])) if len(below) else None,
        between(int(over[0]) - 1, int(over[0])) if len(over) else None,
    )
