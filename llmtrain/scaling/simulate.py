"""What a sweep would say, before it is run: its fit repeated on losses drawn from a known law."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from llmtrain.errors import NumbersError
from llmtrain.scaling.estimate import Estimate, Problem, huber_delta
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.forms.base import Inputs
from llmtrain.scaling.law import Law, law_of
from llmtrain.scaling.method import Method
from llmtrain.scaling.newton import Data
from llmtrain.scaling.points import Points
from llmtrain.scaling.replicates import sigma_within


@dataclass(frozen=True)
class Simulated:
    """Of each simulated sweep, at each target: [S t]; sweeps whose fit did not converge are left out."""

    laws: tuple[Law, ...]
    truth: Float[np.ndarray, " t"]  # the law's loss
    predicted: Float[np.ndarray, "S t"]
    half_width: Float[np.ndarray, "S t"]  # of the run's interval, relative
    in_law: Bool[np.ndarray, "S t"]  # the law's interval has the truth
    in_run: Bool[np.ndarray, "S t"]  # the run's interval has a run of its own noise
    failed: int


def simulate(
    points: Points,
    law: Mapping[str, float],
    method: Method,
    target: Inputs,
    *,
    sigma: float,
    count: int,
    seed: int = 0,
    misfit: float = 0.0,
) -> Simulated:
    """``count`` sweeps on the inputs of ``points`` (their losses do not matter) with log-normal noise of sd ``sigma``.

    ``law`` holds parameters of ``method.form`` as papers state them. ``misfit`` is the sd of what the form lacks, drawn
    once a cell, whose replicates share it. All sweeps are fitted at once, by the method's residual and delta.
    """
    form = FORMS[method.form]
    rng = np.random.default_rng(seed)
    problem = Problem.of(form, points.x, method.fix, log=method.residual == "log")
    cells = points.cells()
    shared = misfit * rng.standard_normal((count, cells.max() + 1))[:, cells]
    noise = sigma * rng.standard_normal((count, len(points)))
    losses = form.predict(law, points.x) * np.exp(shared + noise)
    weights = np.broadcast_to(points.weight, losses.shape)
    truth = form.predict(law, target)
    runs = truth * np.exp(sigma * rng.standard_normal((count, len(truth))))
    found = _fitted(problem, law, Data(losses, weights), points, method)
    laws = tuple(one for one in found if one is not None)
    kept = np.array([one is not None for one in found])
    bands = [one.bands(target, method.level) for one in laws]

    def column(name: str) -> Float[np.ndarray, "S t"]:
        return np.array([getattr(band, name) for band in bands]).reshape(len(laws), len(truth))

    loss, run_lo, run_hi = column("loss"), column("run_lo"), column("run_hi")
    return Simulated(
        laws=laws,
        truth=truth,
        predicted=loss,
        half_width=0.5 * (run_hi - run_lo) / loss,
        in_law=(column("law_lo") <= truth) & (truth <= column("law_hi")),
        in_run=(run_lo <= runs[kept]) & (runs[kept] <= run_hi),
        failed=int((~kept).sum()),
    )


def _fitted(
    problem: Problem, law: Mapping[str, float], data: Data, points: Points, method: Method
) -> list[Law | None]:
    """The law of each data set, begun at the one that it was drawn from; None where the fit did not converge."""
    theta = problem.form.theta(law, problem.model.centre)
    for name, value in problem.fixed.items():  # whatever the truth is, the fit holds to it
        theta[problem.form.at(name)] = value
    start = np.repeat(theta[None], len(data.loss), 0)
    first = problem.solve(data, start, [np.inf])
    cells = points.cells()
    known = [sigma_within(np.log(y) if problem.log else y, cells, points.unit) for y in data.loss]
    deltas = np.array(
        [
            huber_delta(problem, problem.residuals(theta, y), y, method.delta, k)
            for theta, y, k in zip(first.theta, data.loss, known, strict=True)
        ]
    )
    solved = problem.solve(data, first.theta, [deltas])

    def one(i: int) -> Law | None:
        theta, delta = solved.theta[i], float(deltas[i])
        residuals = problem.residuals(theta, data.loss[i])
        found = Estimate(theta, float(solved.objective[i]), delta, [delta], residuals)
        try:
            return law_of(problem, found, points.weight, points.unit, known[i], points.convention)
        except NumbersError:  # such losses leave the law open
            return None

    return [one(i) if converged else None for i, converged in enumerate(solved.converged)]
