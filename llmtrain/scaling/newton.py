"""Batched damped Newton for Huber's loss of a sum of exponentials: many starts, resamples or data sets at once.

The objective is sum_i w_i rho(r_i) with r = ln f - ln y or f - y and f = sum_j exp(phi_j). Steps
begin as Levenberg-Marquardt's on the reweighted (IRLS) normal matrix, which descend from anywhere, and go on with the
exact Hessian, which makes the last digits cheap: where delta is small, IRLS needs thousands of steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float

from llmtrain.scaling.huber import inside, psi, rho

_CHUNK = 128  # problems worked on together: their arrays stay in the processor's cache
_REWEIGHTED_STEPS = 2  # before the exact Hessian
_GIVE_UP = 1e10  # damping at which no step descends: the last digit is reached
_DECREASE = 1e-14  # of the objective, predicted of the next step: what counts as converged
_ROUNDING = 2e-15  # of a residual (logarithms are near 1): a rise of the objective by what it makes is none
_EXACT = 1e-28  # mean square of residuals, relative where they are logs, which is rounding alone


class Model(ABC):
    """f = sum_j exp(phi_j(theta)) on some points; ``slopes`` are d phi_j / d theta, [n p], or [S n p] by problem."""

    @abstractmethod
    def terms(self, theta: Float[np.ndarray, "S p"]) -> list[np.ndarray]: ...

    @abstractmethod
    def slopes(self, theta: Float[np.ndarray, "S p"]) -> list[np.ndarray]: ...


class Data(NamedTuple):
    loss: Float[np.ndarray, "S n"]
    weight: Float[np.ndarray, "S n"]


class Solved(NamedTuple):
    theta: Float[np.ndarray, "S p"]
    objective: Float[np.ndarray, " S"]
    converged: Bool[np.ndarray, " S"]


@no_type_check
class _Point(NamedTuple):
    """Everything about the model at one theta."""

    terms: list[np.ndarray]
    residual: np.ndarray
    objective: np.ndarray

    def keep(self, rows: np.ndarray) -> "_Point":
        return _Point([t[rows] for t in self.terms], self.residual[rows], self.objective[rows])


def solve(
    model: Model,
    data: Data,
    start: Float[np.ndarray, "S p"],
    *,
    free: Bool[np.ndarray, " p"],
    log: bool,
    deltas: Sequence[float | Float[np.ndarray, " S"]],
) -> Solved:
    """Minimise from each start; ``deltas`` are gone through in turn, each begun where the one before ended.

    A delta is one for all problems, or one for each. Raises nothing: what did not converge says so.
    """
    loss, weight = (np.broadcast_to(a, (len(start), a.shape[-1])) for a in data)
    columns = [np.broadcast_to(np.asarray(delta, dtype=float), len(start))[:, None] for delta in deltas]
    found = []
    for i in range(0, len(start), _CHUNK):
        rows = slice(i, i + _CHUNK)
        problem = _Problem(model, Data(loss[rows], weight[rows]), free, log, columns[0][rows])
        theta = start[rows]
        for delta in columns:
            solved = _descend(problem._replace(delta=delta[rows]), theta)
            theta = solved.theta
        found.append(solved)
    return Solved(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


@no_type_check  # by the tests, that is: these are called thousands of times, with what ``solve`` has checked
class _Problem(NamedTuple):
    model: Model
    data: Data
    free: np.ndarray
    log: bool
    delta: np.ndarray  # [S 1]

    def keep(self, rows: np.ndarray) -> "_Problem":
        data = Data(self.data.loss[rows], self.data.weight[rows])
        return self._replace(data=data, delta=self.delta[rows])

    def at(self, theta: np.ndarray) -> _Point:
        # a wild step is refused for its objective
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            terms = [np.exp(phi) for phi in self.model.terms(theta)]
            f = sum(terms[1:], terms[0])
            if self.log:
                terms, residual = [t / f for t in terms], np.log(f) - np.log(self.data.loss)
            else:
                residual = f - self.data.loss
            objective = (self.data.weight * rho(residual, self.delta)).sum(-1)
        return _Point(terms, residual, np.where(np.isfinite(objective), objective, np.inf))

    def derivatives(
        self, theta: np.ndarray, here: _Point, *, exact: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient, Hessian (or IRLS' normal matrix), and the latter's diagonal: the scale of each direction."""
        slopes = self.model.slopes(theta)
        jacobian = sum(t[:, :, None] * x for t, x in zip(here.terms, slopes, strict=True)) * self.free
        force = self.data.weight * psi(here.residual, self.delta)
        gradient = (force[:, None, :] @ jacobian)[:, 0]
        size = np.maximum(np.abs(here.residual), np.finfo(float).tiny)
        reweighted = self.data.weight * np.minimum(1.0, self.delta / size)
        normal = _gram(jacobian, reweighted)
        scale = np.where(self.free, np.maximum(normal.diagonal(axis1=1, axis2=2), 1e-300), 1.0)
        if not exact:
            return gradient, normal, scale
        curving = self.data.weight * inside(here.residual, self.delta) - (force if self.log else 0)
        hessian = _gram(jacobian, curving)
        for t, x in zip(here.terms, slopes, strict=True):
            hessian = hessian + _weighted_square(x * self.free, force * t)
        return gradient, hessian, scale


@no_type_check
def _descend(problem: _Problem, start: np.ndarray, max_steps: int = 300) -> Solved:
    theta, here = start.copy(), problem.at(start)
    objective, converged = here.objective.copy(), np.zeros(len(start), bool)
    damping = np.full(len(start), 1e-3)
    rows = np.arange(len(start))  # those still under way; ``problem``, ``here`` and ``damping`` are theirs
    mass = (problem.data.weight * (1.0 if problem.log else problem.data.loss**2)).sum(-1)
    eye = np.eye(start.shape[1])
    for count in range(max_steps):
        g, h, scale = problem.derivatives(theta[rows], here, exact=count >= _REWEIGHTED_STEPS)
        damped = h + eye * (damping[:, None] * scale + ~problem.free)[:, None, :]
        step = -_solved(damped, g)
        slope = (g * step).sum(-1)
        gain = -slope - 0.5 * (step[:, None] @ damped @ step[..., None])[:, 0, 0]
        there = problem.at(theta[rows] + step)
        slack = _ROUNDING * np.sqrt(mass[rows] * here.objective)
        down = (slope <= 0) & (there.objective <= here.objective + slack)
        small = (slope <= 0) & (np.abs(gain) <= _DECREASE * here.objective) & (damping < 1e-2)
        small |= here.objective <= mass[rows] * _EXACT
        theta[rows[down]] += step[down]
        here = _merged(down, there, here)
        objective[rows] = here.objective
        damping = np.where(down, np.maximum(damping / 5, 1e-14), damping * 5)
        if count < _REWEIGHTED_STEPS:
            continue
        converged[rows[small]] = True
        going = ~small & (damping < _GIVE_UP)
        # no step descends: at the optimum to rounding, if what a step promises is no more than that
        stuck = ~small & ~going & (np.abs(gain) <= 1e-9 * here.objective)
        converged[rows[stuck]] = True
        rows, here, damping, problem = rows[going], here.keep(going), damping[going], problem.keep(going)
        if not len(rows):
            break
    return Solved(theta, objective, converged)


@no_type_check
def _merged(where: np.ndarray, a: _Point, b: _Point) -> _Point:
    def pick(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(where[:, None], x, y)

    terms = [pick(x, y) for x, y in zip(a.terms, b.terms, strict=True)]
    return _Point(terms, pick(a.residual, b.residual), np.where(where, a.objective, b.objective))


@no_type_check
def _gram(jacobian: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (jacobian * weight[:, :, None]).transpose(0, 2, 1) @ jacobian


@no_type_check
def _weighted_square(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum_i weight_i x_i x_i^T, with x the same for all problems or not."""
    if x.ndim == 3:
        return _gram(x, weight)
    n, p = x.shape
    return (weight @ (x[:, :, None] * x[:, None, :]).reshape(n, p * p)).reshape(-1, p, p)


@no_type_check
def _solved(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(matrix, vector[..., None])[..., 0]
    except np.linalg.LinAlgError:  # one of the batch is exactly singular
        return (np.linalg.pinv(matrix) @ vector[..., None])[..., 0]
