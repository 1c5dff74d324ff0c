"""Predicting what is known: laws of the smaller budgets against the runs of the next ones."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmtrain.errors import UserError
from llmtrain.scaling.budgets import steps
from llmtrain.scaling.fit import Fit, fit_law
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Points

_FIRST = 2  # budgets of the first law: one says nothing of the next
PERCENT_FROM = 20  # of fewer predictions a percentage says more than they do


@dataclass(frozen=True)
class Step:
    """A law of all runs up to some FLOPs, against the runs of the next budget and against all larger ones."""

    flops_up_to: float
    n_fitted: int
    n_next: int
    error_next: float  # mean absolute, relative
    in_law: int  # of the next budget's runs
    in_run: int
    n_larger: int
    error_larger: float


def backtest(found: Fit) -> dict[str, Any]:
    """Rolling over a fit's budgets; where no law can be fitted to the smaller ones, the reason stands instead."""
    points, method = found.points, found.method
    if "c" not in points.x or found.lines:
        return {"steps": [], "skipped": [], "reason": "of a law of single runs with known FLOPs only"}
    number = steps(points.x["c"])
    done: list[Step] = []
    skipped: list[dict[str, Any]] = []
    for last in range(_FIRST - 1, number.max()):
        fitted = number <= last
        up_to = float(points.x["c"][fitted].max())
        try:
            law = fit_law(points.keep(fitted, "held out"), _settled(method, found))
        except UserError as error:
            skipped.append({"flops_up_to": up_to, "reason": str(error)})
            continue
        bands = law.bands(points.x, method.level)
        off = np.abs(points.loss / bands.loss - 1)
        in_law = (bands.law_lo <= points.loss) & (points.loss <= bands.law_hi)
        in_run = (bands.run_lo <= points.loss) & (points.loss <= bands.run_hi)
        following = number == last + 1
        done.append(
            Step(
                up_to,
                int(fitted.sum()),
                int(following.sum()),
                float(off[following].mean()),
                int(in_law[following].sum()),
                int(in_run[following].sum()),
                int((~fitted).sum()),
                float(off[~fitted].mean()),
            )
        )
    of = sum(step.n_next for step in done)
    inside: dict[str, float] = {
        "law": sum(s.in_law for s in done),
        "run": sum(s.in_run for s in done),
        "of": of,
    }
    if of >= PERCENT_FROM:
        inside |= {"law_percent": 100 * inside["law"] / of, "run_percent": 100 * inside["run"] / of}
    return {"steps": [vars(step) for step in done], "inside": inside, "skipped": skipped}


def _settled(method: Method, found: Fit) -> Method:
    """The same method without what chose the points, which has been done."""
    return replace(
        method, delta=found.found.delta, drop_highest_loss=0, drop_worst_residual=0, frontier_bins=None, at=()
    )


def compare_forms(points: Points, method: Method) -> list[dict[str, Any]]:
    """Each form that the columns allow, fitted without the largest budget and scored on it: never by its own fit."""
    if "c" not in points.x:
        return []
    number = steps(points.x["c"])
    held = number == number.max()
    found: list[dict[str, Any]] = []
    for name, form in FORMS.items():
        if not set(form.needs) <= set(points.x) or held.all():
            continue
        fix = method.fix if name == method.form else {}
        trial = Method(form=name, residual=method.residual, delta=method.delta, fix=fix, bootstrap=0)
        try:
            law = fit_law(points.keep(~held, "held out"), trial)
        except UserError as error:
            found.append({"form": name, "error": None, "reason": str(error)})
            continue
        off = np.abs(points.loss / law.loss(points.x) - 1)
        found.append({"form": name, "error": float(off[held].mean()), "reason": None})
    return found
