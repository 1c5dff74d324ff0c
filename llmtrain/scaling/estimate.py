"""One law from one set of points: starts, descent from each, and the checks without which it is no result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from llmtrain.errors import DataError, NumbersError
from llmtrain.scaling.forms.base import Bound, Form, Inputs
from llmtrain.scaling.huber import EFFICIENT, mad_sigma
from llmtrain.scaling.newton import Data, Solved, solve
from llmtrain.scaling.replicates import NO_REPLICATES, Replicates
from llmtrain.scaling.start import fixed_theta, starts

_AGREE = 1e-6  # relative, of objectives
_STEEPEST = 5.0  # beyond it an exponent stands for a step, not for a power
_VANISHED = 1e-7  # of the whole, wherever a term is largest
_FARTHEST = 12.0  # of a shape's logarithm
_ROUNDING = 1e-12  # a residual sd below it is none
_WAY_OUT = "the points do not determine it: fix a parameter, or take another form"
_CONTINUE_BELOW = 0.1  # of the residual sd: a smaller delta is approached from there, by half decades


@dataclass(frozen=True)
class Problem:
    """A form on points, with what is fixed: ready for any losses and weights."""

    form: Form
    model: Bound
    fixed: dict[str, float]  # entries of theta
    log: bool

    @classmethod
    def of(cls, form: Form, x: Inputs, fix: Mapping[str, float], *, log: bool) -> "Problem":
        used = {key: x[key] for key in form.needs}
        model = form.on(used, form.centre(used))
        return cls(form, model, fixed_theta(model, fix), log)

    @property
    def free(self) -> Bool[np.ndarray, " p"]:
        return np.array([name not in self.fixed for name in self.form.parameters])

    @property
    def n_free(self) -> int:
        return len(self.form.parameters) - len(self.fixed)

    def values(self, theta: Float[np.ndarray, "S p"]) -> Float[np.ndarray, "S n"]:
        with np.errstate(over="ignore"):
            return np.asarray(sum(np.exp(phi) for phi in self.model.terms(theta)))

    def shares(self, theta: Float[np.ndarray, " p"]) -> dict[str, float]:
        """Of each term that has a power and is fitted, the largest share of the whole at any point."""
        terms = [np.exp(phi)[0] for phi in self.model.terms(theta[None])]
        whole = sum(terms)
        return {
            one.coefficient: float((term / whole).max())
            for one, term in zip(self.form.terms, terms, strict=True)
            if one.powers and one.coefficient not in self.fixed
        }

    def residuals(
        self, theta: Float[np.ndarray, " p"], loss: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        f = self.values(theta[None])[0]
        return np.log(f) - np.log(loss) if self.log else f - loss

    def jacobian(self, theta: Float[np.ndarray, " p"]) -> Float[np.ndarray, "n p"]:
        """Of the residuals; nothing moves along what is fixed."""
        terms = [np.exp(phi)[0] for phi in self.model.terms(theta[None])]
        slopes = [np.broadcast_to(x, (1, *x.shape[-2:]))[0] for x in self.model.slopes(theta[None])]
        found = sum(t[:, None] * x for t, x in zip(terms, slopes, strict=True)) * self.free
        return np.asarray(found / sum(terms)[:, None] if self.log else found)

    def starts(self, data: Data) -> Float[np.ndarray, "k p"]:
        return starts(self.model, data.loss[0], data.weight[0], self.fixed)

    def solve(
        self, data: Data, start: Float[np.ndarray, "S p"], deltas: Sequence[float | Float[np.ndarray, " S"]]
    ) -> Solved:
        return solve(self.model, data, start, free=self.free, log=self.log, deltas=deltas)


@dataclass(frozen=True)
class Estimate:
    """The optimum, with what was minimised."""

    theta: Float[np.ndarray, " p"]
    objective: float  # sum over points of weight times Huber's loss of the residual
    delta: float
    deltas: list[float]  # the way to delta, by which resamples go too
    residuals: Float[np.ndarray, " n"]


def estimate(
    problem: Problem,
    loss: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    delta: float | str,
    known: Replicates = NO_REPLICATES,
) -> Estimate:
    """Raises DataError where there are too few points, NumbersError where the optimum cannot be trusted."""
    if len(loss) <= problem.n_free:
        raise DataError(
            f"{len(loss)} points cannot determine the {problem.n_free} parameters of form {problem.form.name}; "
            f"give at least {problem.n_free + 1}, or fix some with --fix"
        )
    data = Data(loss[None], weight[None])
    found = problem.solve(data, problem.starts(data), [np.inf])
    first = _best(problem, found, data)
    residuals = problem.residuals(first, loss)
    delta = huber_delta(problem, residuals, loss, delta, known)
    deltas = way_to(delta, mad_sigma(residuals, problem.n_free))
    if deltas != [
        np.inf
    ]:  # from the grid's starts too: least squares may have led them all to one optimum of many
        found = problem.solve(data, np.concatenate([found.theta, problem.starts(data)]), deltas)
    theta = _best(problem, found, data)
    return Estimate(theta, float(found.objective.min()), delta, deltas, problem.residuals(theta, loss))


def huber_delta(
    problem: Problem,
    residuals: Float[np.ndarray, " n"],
    loss: Float[np.ndarray, " n"],
    asked: float | str,
    known: Replicates,
) -> float:
    """What "auto" stands for: 1.345 sd of the replicates, or of the residuals of least squares by their median."""
    if asked != "auto":
        return float(asked)
    sigma = known.sigma if known.enough and known.sigma else mad_sigma(residuals, problem.n_free)
    scale = 1.0 if problem.log else float(np.mean(loss))
    return EFFICIENT * sigma if sigma > _ROUNDING * scale else np.inf


def way_to(delta: float, sigma: float) -> list[float]:
    """The deltas to go through: a tiny one makes a landscape of kinks, whose optimum is found from smoother ones."""
    at = _CONTINUE_BELOW * sigma
    steps = []
    while at > delta * 3.2:
        steps.append(at)
        at /= np.sqrt(10)
    return [*steps, delta]


def _best(problem: Problem, found: Solved, data: Data) -> np.ndarray:
    """The best of the starts, once it is known for an optimum."""
    name = problem.form.name
    if not found.converged.any():
        raise NumbersError(f"form {name}: no start converged; {_WAY_OUT}")
    best = int(np.argmin(np.where(np.isfinite(found.objective), found.objective, np.inf)))
    least = found.objective[best]
    scale = 1.0 if problem.log else float(np.mean(data.loss)) ** 2
    same = found.objective <= least * (1 + _AGREE) + data.weight.sum() * scale * _ROUNDING**2
    if not found.converged[best]:
        raise NumbersError(f"form {name}: the gradient at the best point found is not zero; {_WAY_OUT}")
    if len(same) > 1 and same.sum() < 2:
        others = np.sort(found.objective[~same])
        raise NumbersError(
            f"form {name}: {len(same)} starts end at different optima (objectives {least:.6g}, {others[0]:.6g}, ...); "
            f"{_WAY_OUT}"
        )
    for limit, names in ((_STEEPEST, problem.form.exponents), (_FARTHEST, problem.form.shapes)):
        for parameter in names:
            value = found.theta[best, problem.form.at(parameter)]
            if parameter not in problem.fixed and abs(value) > limit:
                raise NumbersError(f"form {name}: {parameter} runs off to a bound; {_WAY_OUT}")
    for coefficient, share in problem.shares(found.theta[best]).items():
        if share < _VANISHED:
            raise NumbersError(
                f"form {name}: {coefficient} is 0 to the fit, and its term says nothing; {_WAY_OUT}"
            )
    return found.theta[best]
