"""The same fit on resampled runs, all at once: what the law would have been from other runs of the same kind."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from llmtrain.scaling.estimate import Estimate, Problem
from llmtrain.scaling.law import LEAST_LEFT, leverages
from llmtrain.scaling.newton import Data

FEW_UNITS = 10  # below it, resampling units leaves out too many of them
_SPARE_UNITS = 2  # more than there are parameters: what the signs of residuals need to say anything
# six weights of mean 0 and variance 1 (Webb 2023, doi:10.1111/caje.12661), for few clusters
_WEBB = np.sqrt([0.5, 1.0, 1.5, 0.5, 1.0, 1.5]) * np.repeat([-1.0, 1.0], 3)

How = Literal["pairs", "wild", "parametric", "none", "withheld"]
FEW = ("wild", "parametric")  # for few units


@dataclass(frozen=True)
class Draws:
    how: How
    theta: Float[np.ndarray, "R p"]
    failed: int = 0  # resamples without an optimum: left out, and warned of

    @property
    def withheld(self) -> bool:
        """Whether there is no interval by another method either."""
        return self.how == "withheld"


NO_DRAWS = Draws("none", np.empty((0, 0)))
WITHHELD = Draws("withheld", np.empty((0, 0)))


def units_wanted(n_free: int) -> int:
    """Of independent units, for an interval without replicates."""
    return n_free + _SPARE_UNITS


def how_to_resample(n_units: int, n_free: int, replicates: int, *, shared: bool = False) -> How:
    """Whole units from ten on; below, replicates' sd where three tell it, or residuals' signs; else none at all.

    Then runs have the delta method still. Where points share units (branches of a trunk) that would take their number
    for that of the units, and the interval is withheld.
    """
    if n_units >= FEW_UNITS:
        return "pairs"
    if replicates >= 3:
        return "parametric"
    if n_units >= units_wanted(n_free):
        return "wild"
    return "withheld" if shared else "none"


def draw(
    problem: Problem,
    found: Estimate,
    loss: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    unit: Int[np.ndarray, " n"],
    *,
    how: How,
    count: int,
    seed: int,
    replicate_sigma: float | None = None,
) -> Draws:
    rng = np.random.default_rng(seed)
    names, code = np.unique(unit, return_inverse=True)
    if how == "withheld":
        return WITHHELD
    if how == "none" or count == 0:
        return NO_DRAWS
    if how == "pairs":
        return from_counts(problem, found, loss, weight, unit_counts(rng, len(names), count)[:, code])
    values = problem.values(found.theta[None])[0]
    if how == "wild":
        spread = spread_residuals(problem, found, weight, len(names))
        noise = rng.choice(_WEBB, (count, len(names)))[:, code] * spread
    else:
        sigma = max(replicate_sigma or 0.0, _residual_sigma(problem, found))
        noise = sigma * rng.standard_normal((count, len(names)))[:, code]
    losses = values * np.exp(noise) if problem.log else values + noise
    return _solved(problem, found, Data(losses, np.broadcast_to(weight, losses.shape)), how)


def spread_residuals(
    problem: Problem, found: Estimate, weight: Float[np.ndarray, " n"], n_units: int
) -> Float[np.ndarray, " n"]:
    """Residuals as wide as the noise (HC2): the fit has drawn each to itself by its leverage.

    Of points that share units, as wide as few units need it, too.
    """
    jacobian = problem.jacobian(found.theta)
    left = np.maximum(1 - leverages(jacobian, weight / weight.mean()), LEAST_LEFT)
    few = n_units / (n_units - 1) if n_units < len(weight) else 1.0
    return np.asarray(found.residuals * np.sqrt(few / left))


def unit_counts(rng: np.random.Generator, n_units: int, count: int) -> Float[np.ndarray, "R u"]:
    """How often each unit was drawn, of as many draws as there are units."""
    drawn = rng.integers(n_units, size=(count, n_units)) + n_units * np.arange(count)[:, None]
    return np.bincount(drawn.reshape(-1), minlength=n_units * count).reshape(count, n_units).astype(float)


def from_counts(
    problem: Problem,
    found: Estimate,
    loss: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, "R n"],
) -> Draws:
    """Resamples given by how often each point is in them."""
    return _solved(problem, found, Data(np.broadcast_to(loss, counts.shape), weight * counts), "pairs")


def _solved(problem: Problem, found: Estimate, data: Data, how: How) -> Draws:
    """Each resample from the whole sample's optimum; one that does not converge from there, from its own starts."""
    start = np.repeat(found.theta[None], len(data.loss), 0)
    solved = problem.solve(data, start, found.deltas)
    theta, good = solved.theta.copy(), solved.converged.copy()
    for i in np.flatnonzero(~good):
        own = Data(data.loss[[i]], data.weight[[i]])
        again = problem.solve(own, problem.starts(own), [np.inf, *found.deltas])
        objective = np.where(again.converged, again.objective, np.inf)
        if np.isfinite(objective).any():
            theta[i], good[i] = again.theta[int(objective.argmin())], True
    return Draws(how, theta[good], int((~good).sum()))


def _residual_sigma(problem: Problem, found: Estimate) -> float:
    spare = max(1, len(found.residuals) - problem.n_free)
    return float(np.sqrt((found.residuals**2).sum() / spare))
