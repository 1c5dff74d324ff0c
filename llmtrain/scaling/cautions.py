"""What a reader must be warned of, each with the number that says so."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc

from llmtrain.scaling.budgets import budgets
from llmtrain.scaling.fit import Fit
from llmtrain.scaling.flops import is_trusted
from llmtrain.scaling.huber import mad_sigma
from llmtrain.scaling.profile import Profile
from llmtrain.scaling.resample import units_wanted

_POINTS_A_PARAMETER = 3
_BUDGETS = 4
_DEGREES = 3  # of freedom: a scatter told by fewer may be far too small by luck
_DECADES = 1.5
_BEYOND = 10
_WINDOW = 4.0  # sizes within so much of the middle, either way: beyond it a parabola is biased by a percent
_EPOCHS = 4
_WARMUP = 0.1
_MISFIT = 2.0  # residual sd over replicate sd
_FAR = 5.0  # robust sds: no normal noise is so far off
_ROUNDING = 1e-9
_LOST = 0.1  # of noisy copies of a curve
_SPREAD = 0.01  # of the loss predicted at ten times the FLOPs


@dataclass(frozen=True)
class Caution:
    name: str
    value: float | int
    limit: float | int
    text: str


def cautions(found: Fit, profile: Profile | None, trials: list[dict[str, Any]]) -> list[Caution]:
    return [
        *_of_data(found),
        *_of_training(found),
        *_of_curves(found),
        *_of_law(found, profile),
        *_of_choices(found, trials),
    ]


def _of_data(found: Fit) -> Iterator[Caution]:
    points, p = found.points, len(found.law.form.parameters) - len(found.law.fixed)
    fitted = len(found.found.residuals)
    if fitted < _POINTS_A_PARAMETER * p:
        limit = _POINTS_A_PARAMETER * p
        yield Caution(
            "few points",
            fitted,
            limit,
            f"{fitted} {'optima' if found.lines else 'points'} for {p} parameters; {limit} would say more",
        )
    if found.draws.withheld:
        limit, unit = units_wanted(p), points.unit_name
        text = (
            f"no intervals: {points.n_units} {unit}s do not tell how {unit}s scatter, whatever runs share them; take "
            f"{limit} {unit}s, or three seeds of one"
        )
        yield Caution("no interval", points.n_units, limit, text)
    elif found.law.dof < _DEGREES and not found.known.enough:
        text = (
            f"intervals rest on {found.law.dof} degrees of freedom and no replicates: by luck they may be far too "
            "narrow; train two seeds of some cells"
        )
        yield Caution("noise unknown", found.law.dof, _DEGREES, text)
    if "c" in points.x:
        c = points.x["c"]
        n_budgets = len(np.unique(budgets(c)))
        decades = float(np.log10(c.max() / c.min()))
        if n_budgets < _BUDGETS:
            yield Caution(
                "few budgets", n_budgets, _BUDGETS, f"{n_budgets} budgets; {_BUDGETS} would say more"
            )
        if decades < _DECADES:
            yield Caution(
                "short span", decades, _DECADES, f"{decades:.2f} decades of compute; extrapolate little"
            )
        beyond = max((flops / c.max() for flops in found.method.at), default=0.0)
        if beyond > _BEYOND:
            text = f"{beyond:.3g} times the FLOPs of the largest run: beyond {_BEYOND} no interval is to be relied on"
            yield Caution("extrapolation", beyond, _BEYOND, text)
    if points.n_units < len(points):
        share = len(points) / points.n_units
        text = f"{len(points)} points of {points.n_units} {points.unit_name}s: they are correlated"
        yield Caution("correlated points", share, 1, text)
    if not is_trusted(points.convention):
        scatter = points.convention.scatter
        text = f"C/D departs from a function of N by {scatter:.1%}: optima by {points.convention.name} are blurred"
        yield Caution("FLOPs convention", scatter, 0.02, text)


def _of_training(found: Fit) -> Iterator[Caution]:
    points = found.points
    more = points.more
    if "epochs" in more and (most := float(more["epochs"].max())) > _EPOCHS:
        yield Caution(
            "epochs",
            most,
            _EPOCHS,
            f"up to {most:.3g} epochs: repeated tokens are worth less (data_constrained)",
        )
    if "warmup" in more and (most := float(more["warmup"].max())) > _WARMUP:
        yield Caution(
            "warmup",
            most,
            _WARMUP,
            f"warmup takes up to {most:.0%} of a run: small runs look worse than they are",
        )
    if "matched" in more and (wrong := int((more["matched"] == 0).sum())):
        text = f"{wrong} of {len(points)} runs did not end with their own decay: the losses are not of their lengths"
        yield Caution("schedule", wrong, 0, text)
    if "lr" in more and "n" in points.x and (edges := _rates_on_an_edge(found)):
        text = (
            f"in {edges} cells the best of the learning rates is the smallest or largest: widen the bracket"
        )
        yield Caution("learning rate on an edge", edges, 0, text)


def _rates_on_an_edge(found: Fit) -> int:
    points = found.points
    sizes = np.stack([np.log(points.x["n"]), np.log(points.x["d"])], 1).round(6)
    cell = np.unique(sizes, axis=0, return_inverse=True)[1].reshape(-1)
    edges = 0
    for k in np.unique(cell):
        here = cell == k
        rates = np.unique(points.more["lr"][here])
        if len(rates) >= 3:
            best = points.more["lr"][here][points.loss[here].argmin()]
            edges += bool(best in (rates[0], rates[-1]))
    return edges


def _of_curves(found: Fit) -> Iterator[Caution]:
    if found.optima is None:
        return
    if lost := len(found.optima.excluded):
        text = f"{lost} budgets have no minimum inside their sizes (see what is excluded)"
        yield Caution("minimum on an edge", lost, 0, text)
    noise = found.optima.noise
    if noise is not None and noise.lost > _LOST:
        text = (
            f"of noisy copies of one curve {noise.lost:.0%} have no minimum inside: its place is hardly known; train "
            "sizes further out, or more seeds"
        )
        yield Caution("minimum lost in noise", noise.lost, _LOST, text)
    widest = 0.0
    number = budgets(found.points.x["c"])
    for b in np.unique(number):
        n = found.points.x["n"][number == b]
        widest = max(widest, float(np.sqrt(n.max() / n.min())))
    if found.method.form == "isoflop" and widest > _WINDOW:
        text = f"sizes reach {widest:.3g} times to either side of the middle: minima are biased beyond {_WINDOW:g}"
        yield Caution("wide window", widest, _WINDOW, text)
    if found.lines and found.law.fixed.get("E", 0.0) < -100 and "E" not in found.method.fix:
        n = len(found.optima.found)
        yield Caution(
            "no offset",
            n,
            5,
            f"{n} optima are too few for an irreducible loss: L*(C) is a power law without one",
        )


def _of_law(found: Fit, profile: Profile | None) -> Iterator[Caution]:
    law, sigma = found.law, found.law.sigma
    offset = law.parameters.get("E")
    least = float(found.points.loss.min())
    if offset is not None and "E" not in law.fixed and offset < 1e-3 * least:
        yield Caution(
            "E at a bound",
            offset,
            1e-3 * least,
            "E is 0 to the fit: the data do not show an irreducible loss",
        )
    elif profile is not None and (profile.lo is None or profile.hi is None):
        side = "0" if profile.lo is None else "the lowest loss"
        value = profile.lo if profile.lo is not None else 0.0
        text = f"the profile of E is open towards {side}: the data do not bound the irreducible loss there"
        yield Caution("E undetermined", value, 0, text)
    if len(found.draws.theta) and "E" in law.form.parameters and "E" not in law.fixed:
        low = float((np.exp(found.draws.theta[:, law.form.at("E")]) < 1e-3 * least).mean())
        if low > 0.01:
            yield Caution("E at a bound in resamples", low, 0.01, f"in {low:.1%} of the resamples E is 0")
    if found.draws.failed:
        n = found.draws.failed
        yield Caution(
            "resamples", n, 0, f"{n} resamples had no optimum that can be trusted, and were left out"
        )
    if sigma.replicate and found.known.enough and found.lines is None:
        ratio = sigma.residual / sigma.replicate
        if ratio > _MISFIT:
            text = (
                f"the residual sd is {ratio:.3g} times that of replicates (lack of fit: p = {lack_of_fit(found):.2g}): "
                "the form does not fit"
            )
            yield Caution("misfit", ratio, _MISFIT, text)


def _far_off(found: Fit) -> int:
    residuals = found.found.residuals
    sigma = mad_sigma(residuals, len(found.law.form.parameters) - len(found.law.fixed))
    return int((np.abs(residuals) > max(_FAR * sigma, _ROUNDING)).sum())


def lack_of_fit(found: Fit) -> float:
    """The F-test's p of residuals no larger than replicates' scatter allows."""
    known, spare = found.known, len(found.points) - (len(found.law.form.parameters) - len(found.law.fixed))
    assert known.sigma is not None
    pure = known.sigma**2 * known.spare
    lack = max(0.0, float((found.found.residuals**2).sum()) - pure)
    dof = spare - known.spare
    return float(fdtrc(dof, known.dof, lack / dof / known.sigma**2)) if dof > 0 else 1.0


def _of_choices(found: Fit, trials: list[dict[str, Any]]) -> Iterator[Caution]:
    by_name = {row["what"]: row for row in trials if row["law"] is not None}
    first = by_name.get("as fitted")
    if first is None:
        return
    far = _far_off(found)
    rows = [(what, row) for what, row in by_name.items() if what.startswith("without")]
    if far and rows:
        what, row = rows[min(far, len(rows)) - 1]
        moved = ", ".join(
            f"{n} {first['law'][n]:.4g} to {row['law'][n]:.4g}" for n in found.law.form.exponents
        )
        yield Caution(
            "outliers", far, 0, f"{far} points are over {_FAR:g} robust sds off the law; {what}: {moved}"
        )
    losses = [row["loss"] for what, row in by_name.items() if what.startswith("delta") and row["loss"]]
    if losses and first["loss"]:
        spread = float(max(losses) - min(losses)) / first["loss"]
        if spread > _SPREAD:
            text = f"the loss predicted at ten times the FLOPs moves by {spread:.1%} with delta from 1e-4 to infinity"
            yield Caution("delta", spread, _SPREAD, text)
