"""A fitted law: what it predicts, and its two bands, of the law and of a run.

The delta method: the variance of the law at x is g' V g with g the gradient by theta and V the larger, there, of
s^2 (J' W J)^-1 and the sandwich that allows each point a variance of its own (HC2, MacKinnon and White 1985; by
clusters where several points come from one unit). That of a run there adds sigma^2 = max(residual, replicate)^2.
Quantiles are Student's with n - p degrees of freedom (units - 1 where they are fewer).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from llmtrain.scaling.determined import NO_SLOPE, require_determined
from llmtrain.scaling.estimate import Estimate, Problem
from llmtrain.scaling.flops import Convention
from llmtrain.scaling.forms.base import Form, Inputs
from llmtrain.scaling.huber import inside, psi
from llmtrain.scaling.replicates import Replicates

_ENOUGH = 4  # points inside delta a parameter, for a Hessian of their own
LEAST_LEFT = 0.05  # of 1 - leverage: a point that the law goes through says nothing of its own scatter


@dataclass(frozen=True)
class Sigma:
    """Sds of the residual (relative for a fit of logs): around the law, and between replicates."""

    residual: float
    replicate: float | None
    replicate_dof: int = 0
    curves: float | None = (
        None  # of runs around the curves of their budgets, where the law is of their minima
    )

    @property
    def run(self) -> float:
        """What a new run scatters by."""
        enough = self.replicate is not None and self.replicate_dof >= 2
        return max(self.residual, self.curves or 0.0, (self.replicate or 0.0) if enough else 0.0)


@dataclass(frozen=True)
class Bands:
    """At each x the loss, where the law's is, and where a run's will be; [n] each, nan where bands are withheld."""

    loss: Float[np.ndarray, " n"]
    law_lo: Float[np.ndarray, " n"]
    law_hi: Float[np.ndarray, " n"]
    run_lo: Float[np.ndarray, " n"]
    run_hi: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Law:
    form: Form
    theta: Float[np.ndarray, " p"]
    centre: dict[str, float]
    covariance: Float[np.ndarray, "p p"]  # residuals alike at all points
    robust: Float[np.ndarray, "p p"]  # a variance of each point's own; points of a unit correlated
    fixed: dict[str, float]  # entries of theta
    log: bool
    sigma: Sigma
    dof: int  # of bands; 0 where nothing tells how runs scatter, and there are none
    convention: Convention

    @property
    def parameters(self) -> dict[str, float]:
        return {name: float(v) for name, v in self.form.law(self.theta, self.centre).items()}

    def problem(self, x: Inputs) -> Problem:
        """The law on other runs, in its own coordinates."""
        used = {key: np.atleast_1d(np.asarray(x[key], dtype=float)) for key in self.form.needs}
        return Problem(self.form, self.form.on(used, self.centre), self.fixed, self.log)

    def loss(self, x: Inputs) -> Float[np.ndarray, " n"]:
        return self.problem(x).values(self.theta[None])[0]

    def bands(self, x: Inputs, level: float) -> Bands:
        problem = self.problem(x)
        loss = problem.values(self.theta[None])[0]
        g = problem.jacobian(self.theta)
        law = np.sqrt(self.variance(g))
        t = float(stdtrit(self.dof, 0.5 + level / 2)) if self.dof else np.nan
        return Bands(
            loss, *self._around(loss, t * law), *self._around(loss, t * np.hypot(law, self.sigma.run))
        )

    def variance(self, g: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " n"]:
        """Of what has gradient g by theta: the larger of the two, since few points tell neither apart."""
        return np.maximum(*(np.einsum("np,pq,nq->n", g, v, g) for v in (self.covariance, self.robust)))

    def _around(self, loss: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.log:
            with np.errstate(over="ignore"):
                return loss * np.exp(-width), loss * np.exp(width)
        return loss - width, loss + width


def law_of(
    problem: Problem,
    found: Estimate,
    weight: Float[np.ndarray, " n"],
    unit: Int[np.ndarray, " n"],
    known: Replicates,
    convention: Convention,
    *,
    least_variance: float = 0.0,
) -> Law:
    """``least_variance``: that of a point by what is known of its making; its residual may be smaller by luck."""
    weight = weight / weight.mean()  # else sd would be in units of the weights
    n, n_units = len(weight), len(np.unique(unit))
    spare = n - problem.n_free
    jacobian = problem.jacobian(found.theta)
    normal = jacobian.T @ (jacobian * weight[:, None])
    require_determined(problem, normal)
    bread = _inverse(normal)
    slope = max(float(np.average(inside(found.residuals, found.delta), weights=weight)), problem.n_free / n)
    force = psi(found.residuals, found.delta) / slope  # residuals, as Huber's loss sees them
    variance = float((weight * force**2).sum() / spare)
    if known.enough and known.sigma is not None:
        variance = max(variance, known.sigma**2)
    variance = max(variance, least_variance)
    leverage = _leverages(jacobian, weight, bread)
    scores = jacobian * (weight * force / np.sqrt(np.maximum(1 - leverage, LEAST_LEFT)))[:, None]
    if n_units < n:  # a unit's scores add up before they are squared
        together = np.zeros((n_units, jacobian.shape[1]))
        np.add.at(together, np.unique(unit, return_inverse=True)[1], scores)
        scores = together * np.sqrt(n_units / (n_units - 1))
    curving = weight * inside(found.residuals, found.delta)
    outer = bread
    if (
        np.count_nonzero(curving) >= _ENOUGH * problem.n_free
    ):  # as noise differs, so does what is inside delta
        outer = _inverse(jacobian.T @ (jacobian * curving[:, None])) * slope
    return Law(
        form=problem.form,
        theta=found.theta,
        centre=dict(problem.model.centre),
        covariance=variance * bread,
        robust=outer @ (scores.T @ scores) @ outer,
        fixed=problem.fixed,
        log=problem.log,
        sigma=Sigma(float(np.sqrt((weight * found.residuals**2).sum() / spare)), known.sigma, known.dof),
        dof=max(1, min(spare, n_units - 1)),
        convention=convention,
    )


def leverages(jacobian: Float[np.ndarray, "n p"], weight: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Of each point, the share of its own loss in what the law says there."""
    return _leverages(jacobian, weight, _inverse(jacobian.T @ (jacobian * weight[:, None])))


def _leverages(
    jacobian: Float[np.ndarray, "n p"], weight: Float[np.ndarray, " n"], bread: Float[np.ndarray, "p p"]
) -> Float[np.ndarray, " n"]:
    return np.asarray(weight * np.einsum("np,pq,nq->n", jacobian, bread, jacobian))


def _inverse(normal: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
    """Of what the points determine: a parameter without slope (fixed, or at a bound) gets no variance."""
    scale = np.sqrt(np.diag(normal))
    there = scale > NO_SLOPE * scale.max()
    found = np.zeros_like(normal)
    unit = normal[np.ix_(there, there)] / np.outer(scale[there], scale[there])
    found[np.ix_(there, there)] = np.linalg.pinv(unit, rcond=1e-14, hermitian=True) / np.outer(
        scale[there], scale[there]
    )
    return found
