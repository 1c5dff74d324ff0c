"""A scaling law fitted to points, with its intervals: ``fit(points, Method(...))``."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from llmtrain.errors import ConfigError, DataError
from llmtrain.scaling.best import Best, best_at, best_on_lines, slopes
from llmtrain.scaling.bins import lowest_in_bins
from llmtrain.scaling.estimate import Estimate, Problem, estimate
from llmtrain.scaling.flops import SIX_ND
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.frontier import has_optimum
from llmtrain.scaling.intervals import Interval, intervals
from llmtrain.scaling.law import Law, law_of
from llmtrain.scaling.method import TWO_STAGE, Method
from llmtrain.scaling.optima import Optima, envelope_optima, isoflop_optima
from llmtrain.scaling.points import Points, without_highest_loss
from llmtrain.scaling.regression import Line, line
from llmtrain.scaling.replicates import Replicates, replicates
from llmtrain.scaling.resample import NO_DRAWS, WITHHELD, Draws, How, draw, how_to_resample

_ANY_FLOPS = 1e18
_BUDGETS_FOR_OFFSET = 5  # optima that a power law with offset needs, or E is 0


@dataclass(frozen=True)
class Fit:
    method: Method
    given: Points  # before any were dropped
    points: Points  # those fitted; ``points.excluded`` are the others
    law: Law  # of the loss; for isoflop and envelope, of the optima's loss by compute
    found: Estimate
    draws: Draws
    known: Replicates
    parameters: dict[str, Interval]
    best: tuple[Best, ...]
    optima: Optima | None = None  # of budgets, for isoflop and envelope
    lines: tuple[Line, Line] | None = None  # N*(C) and D*(C) through them

    def best_at(self, flops: float) -> Best:
        if self.lines:
            return best_on_lines(self.lines, self.law, self.draws, flops, self.method.level)
        return best_at(self.law, self.draws, flops, self.method.level)


def fit(points: Points, method: Method) -> Fit:
    """Raises DataError for points that cannot be fitted so, NumbersError for an optimum that cannot be trusted."""
    given, points = points, without_highest_loss(points, method.drop_highest_loss)
    if method.form in TWO_STAGE:
        return _two_stage(given, points, method)
    problem, found, points = point_fit(points, method)
    known, law = _law(problem, found, points)
    how = _how(points, problem, known)
    draws = draw(
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
    law = _withheld(law, draws)
    named = _named(law, draws, method)
    best = tuple(best_at(law, draws, flops, method.level) for flops in flops_of_interest(points, method))
    return Fit(method, given, points, law, found, draws, known, named, best)


def _withheld(law: Law, draws: Draws) -> Law:
    """Without bands, where there is no interval by any method: those of the delta method would be too narrow."""
    return replace(law, dof=0) if draws.withheld else law


def _how(points: Points, problem: Problem, known: Replicates) -> How:
    shared = points.n_units < len(points)
    return how_to_resample(points.n_units, problem.n_free, known.largest, shared=shared)


def fit_law(points: Points, method: Method) -> Law:
    """The law alone, of a form that is fitted to runs; what trials of a method need."""
    return _law(*point_fit(points, method))[1]


def _law(problem: Problem, found: Estimate, points: Points) -> tuple[Replicates, Law]:
    known = replicates(points, log=problem.log)
    return known, law_of(problem, found, points.weight, points.unit, known, points.convention)


def _named(law: Law, draws: Draws, method: Method) -> dict[str, Interval]:
    def fitted(theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
        return {k: v for k, v in law.form.law(theta, law.centre).items() if k not in method.fix}

    found = {k: Interval(v, None, None, None) for k, v in law.parameters.items()}
    found |= intervals(law, draws, fitted, method.level)
    if law.form.name == "chinchilla" and law.convention == SIX_ND:  # then one exponent holds at every C
        found |= intervals(law, draws, lambda theta: slopes(law, theta, _ANY_FLOPS), method.level)
    return found


def point_fit(points: Points, method: Method) -> tuple[Problem, Estimate, Points]:
    """The optimum alone, and the points left after the worst residuals were dropped."""
    form = FORMS[method.form]
    points.require(form.needs, f"form {form.name}")
    if method.frontier_bins:
        points = _frontier(points, method.frontier_bins, middle=form.needs == ("c",))
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


def _frontier(points: Points, bins: int, *, middle: bool) -> Points:
    """The lowest run of each bin; with ``middle`` it stands at the bin's middle."""
    points.require(("c",), "--frontier-bins")
    chosen, centres = lowest_in_bins(points, bins)
    kept = np.zeros(len(points), bool)
    kept[chosen] = True
    frontier = points.keep(kept, f"not the lowest of its bin, of {bins}")
    if not middle:
        return frontier
    order = np.argsort(np.argsort(chosen))  # ``keep`` leaves the points in their own order
    c = np.empty(len(chosen))
    c[order] = centres
    return replace(frontier, x=frontier.x | {"c": c})


def _estimated(points: Points, method: Method) -> tuple[Problem, Estimate]:
    log = method.residual == "log"
    problem = Problem.of(FORMS[method.form], points.x, method.fix, log=log)
    known = replicates(points, log=log)
    return problem, estimate(problem, points.loss, points.weight, method.delta, known)


def flops_of_interest(points: Points, method: Method) -> tuple[float, ...]:
    """The FLOPs that were asked for, the most that a run had, and ten times that; none where the form has no C."""
    form = FORMS.get(method.form)
    if "c" not in points.x or (form and not has_optimum(form) and form.needs != ("c",)):
        return ()
    most = float(points.x["c"].max())
    return tuple(sorted({*method.at, most, 10 * most}))


def _two_stage(given: Points, points: Points, method: Method) -> Fit:
    """The optima first, then power laws through them."""
    _refuse_unused(points, method)
    points.require(("n", "d", "c"), f"form {method.form}")
    log = method.residual == "log"
    if method.form == "isoflop":
        optima = isoflop_optima(points, method, replicates(points, log=True))
    else:
        optima = envelope_optima(points, method)
    points, noise = optima.kept, optima.noise
    known = replicates(points, log=log)
    c = optima.column("flops")
    lines = (
        line(c, optima.column("n"), None if noise is None else noise.n),
        line(c, optima.column("d"), None if noise is None else noise.d),
    )
    fix = method.fix if "E" in method.fix or len(c) >= _BUDGETS_FOR_OFFSET else method.fix | {"E": 0.0}
    by_compute = replace(
        method, form="power", fix=fix, frontier_bins=None, bootstrap=0, drop_worst_residual=0
    )
    problem = Problem.of(FORMS["power"], {"c": c}, fix, log=log)
    loss, ones = optima.column("loss"), np.ones(len(c))
    found = estimate(problem, loss, ones, method.delta)
    unit = 1.0 if log else float(loss.mean())  # of what is relative
    floor = 0.0 if noise is None else unit**2 * float(noise.loss.mean())
    law = law_of(problem, found, ones, np.arange(len(c)), known, points.convention, least_variance=floor)
    if noise is not None:
        law = replace(law, sigma=replace(law.sigma, curves=unit * noise.run))
    level = method.level
    draws = WITHHELD if _how(points, problem, known) == "withheld" else NO_DRAWS
    law = _withheld(law, draws)
    if draws.withheld:
        lines = (replace(lines[0], dof=0), replace(lines[1], dof=0))
    named = {
        "a": lines[0].exponent(level),
        "b": lines[1].exponent(level),
        "N_1": Interval(lines[0].coefficient, None, None, None),  # N* = N_1 C^a
        "D_1": Interval(lines[1].coefficient, None, None, None),
    }
    named |= _named(law, draws, by_compute)
    best = tuple(best_on_lines(lines, law, draws, c, level) for c in flops_of_interest(points, method))
    return Fit(method, given, points, law, found, draws, known, named, best, optima, lines)


def _refuse_unused(points: Points, method: Method) -> None:
    """Raises ConfigError for what a fit of optima would leave unheard."""
    unused = {
        "weights": bool(np.ptp(points.weight)),
        "--drop-worst-residual": bool(method.drop_worst_residual),
        "--frontier-bins": method.form == "isoflop" and method.frontier_bins is not None,
    }
    if named := [name for name, given in unused.items() if given]:
        raise ConfigError(
            f"form {method.form} fits the optima of budgets and makes no use of {' or '.join(named)}: leave that out, "
            "or take a form that is fitted to runs, as --form chinchilla"
        )
