"""A scaling law fitted to points, with its intervals: ``fit(points, Method(...))``."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from llmtrain.errors import DataError
from llmtrain.scaling.estimate import Estimate, Problem, estimate
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.frontier import has_optimum, optimum
from llmtrain.scaling.intervals import Interval, intervals
from llmtrain.scaling.law import Law, law_of
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Points, without_highest_loss
from llmtrain.scaling.replicates import Replicates, replicates
from llmtrain.scaling.resample import Draws, draw, how_to_resample


@dataclass(frozen=True)
class Best:
    """The compute-optimal run at given FLOPs; N and D are missing where the form does not set one against the other."""

    flops: float
    loss: Interval
    n: Interval | None = None
    d: Interval | None = None
    a: float | None = None  # d ln N* / d ln C there
    b: float | None = None


@dataclass(frozen=True)
class Fit:
    method: Method
    points: Points  # those fitted; ``points.excluded`` are the others
    law: Law
    found: Estimate
    draws: Draws
    parameters: dict[str, Interval]
    best: tuple[Best, ...]


def fit(points: Points, method: Method) -> Fit:
    """Raises DataError for points that cannot be fitted so, NumbersError for an optimum that cannot be trusted."""
    points = without_highest_loss(points, method.drop_highest_loss)
    problem, found, points = point_fit(points, method)
    known = replicates(points, log=problem.log)
    law = law_of(problem, found, points.weight, points.unit, known, points.convention)
    draws = resampled(problem, found, points, method, known)
    named = intervals(law, draws, lambda theta: problem.form.law(theta, law.centre), method.level)
    fixed = set(method.fix)
    named = {k: Interval(v.value, None, None, None) if k in fixed else v for k, v in named.items()}
    best = tuple(best_at(law, draws, flops, method.level) for flops in budgets_of_interest(points, method))
    return Fit(method, points, law, found, draws, named, best)


def point_fit(points: Points, method: Method) -> tuple[Problem, Estimate, Points]:
    """The optimum alone, and the points left after the worst residuals were dropped."""
    form = FORMS[method.form]
    points.require(form.needs, f"form {form.name}")
    problem, found = _estimated(points, method)
    if method.drop_worst_residual:
        if method.drop_worst_residual >= len(points):
            raise DataError(
                f"--drop-worst-residual {method.drop_worst_residual} leaves none of {len(points)} points"
            )
        order = np.argsort(np.abs(found.residuals), kind="stable")
        kept = np.ones(len(points), bool)
        kept[order[len(order) - method.drop_worst_residual :]] = False
        points = points.keep(
            kept, f"one of the {method.drop_worst_residual} largest residuals of a first fit"
        )
        problem, found = _estimated(points, method)
    return problem, found, points


def _estimated(points: Points, method: Method) -> tuple[Problem, Estimate]:
    log = method.residual == "log"
    problem = Problem.of(FORMS[method.form], points.x, method.fix, log=log)
    known = replicates(points, log=log)
    sigma = known.sigma if known.enough else None
    return problem, estimate(problem, points.loss, points.weight, method.delta, sigma)


def resampled(problem: Problem, found: Estimate, points: Points, method: Method, known: Replicates) -> Draws:
    how = how_to_resample(points.n_units, problem.n_free, known.largest)
    return draw(
        problem,
        found,
        points.loss,
        points.weight,
        points.unit,
        how=how,
        count=method.bootstrap,
        seed=method.seed,
        replicate_sigma=known.sigma,
    )


def budgets_of_interest(points: Points, method: Method) -> tuple[float, ...]:
    """The FLOPs that were asked for, the most that a run had, and ten times that."""
    if "c" not in points.x or not (has_optimum(FORMS[method.form]) or FORMS[method.form].needs == ("c",)):
        return ()
    most = float(points.x["c"].max())
    return tuple(sorted({*method.at, most, 10 * most}))


def best_at(law: Law, draws: Draws, flops: float, level: float) -> Best:
    form = law.form
    if not has_optimum(form):  # of compute alone

        def loss_alone(theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
            phis = form.log_terms(theta, {"c": np.array([flops])}, law.centre)
            return {"loss": np.asarray(sum(np.exp(phi) for phi in phis))[:, 0]}

        return Best(flops, intervals(law, draws, loss_alone, level, ratio=True)["loss"])

    def ends(theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
        found = optimum(form, theta, law.centre, law.convention, flops)
        return {"n": found.n, "d": found.d, "loss": found.loss}

    near = [optimum(form, law.theta[None], law.centre, law.convention, flops * f).n[0] for f in (0.5, 2.0)]
    a = float(np.log(near[1] / near[0]) / np.log(4))
    found = intervals(law, draws, ends, level, ratio=True)
    return Best(flops, found["loss"], found["n"], found["d"], a, 1 - a)


def refit(points: Points, method: Method, keep: np.ndarray, reason: str) -> Fit:
    """The same method on some of the points, without resamples."""
    return fit(points.keep(keep, reason), replace_bootstrap(method))


def replace_bootstrap(method: Method) -> Method:
    return replace(method, bootstrap=0)
