"""What a scaling study must state, filled from a fit: the items are fixed, and what is not known says so.

The items follow what surveys of published laws found missing (Li et al. 2025, arXiv:2502.18969).
"""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.budgets import budgets
from llmtrain.scaling.study import Judged

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Item:
    topic: str
    question: str
    answer: str

    @property
    def stated(self) -> bool:
        return self.answer != NOT_STATED


def checklist(judged: Judged) -> list[Item]:
    return [
        Item(topic, question, answer or NOT_STATED)
        for topic, items in (
            ("what is fitted", _what(judged)),
            ("counts", _counts(judged)),
            ("runs", _runs(judged)),
            ("training", _training(judged)),
            ("method", _method(judged)),
            ("uncertainty", _uncertainty(judged)),
            ("validation", _validation(judged)),
        )
        for question, answer in items.items()
    ]


def _what(judged: Judged) -> dict[str, str]:
    fit = judged.fit
    about = fit.points.about
    return {
        "law": fit.law.form.formula if not fit.lines else f"N* and D* as powers of C; {fit.law.form.formula}",
        "score": " ".join(
            part for part in (about.score, f"({about.score_unit})" if about.score_unit else "") if part
        ),
        "held-out set": about.eval_hash,
        "corpus": about.corpus,
        "tokenizer": about.tokenizer,
        "version of Python": about.python,
    }


def _counts(judged: Judged) -> dict[str, str]:
    points = judged.fit.points
    convention = points.convention
    scatter = f", C/D within {convention.scatter:.2g} of a function of N" if convention.scatter else ""
    return {
        "parameters N": points.about.n_convention,
        "data D": points.about.tokens_unit,
        "compute C": f"{convention.name}{scatter}" if "c" in points.x else "",
    }


def _runs(judged: Judged) -> dict[str, str]:
    points = judged.fit.points
    found = {
        "source": f"{points.about.source} (sha256 {points.about.sha256[:12]})"
        if points.about.sha256
        else points.about.source,
        "points fitted": f"{len(points)}, of {points.n_units} {points.unit_name}s",
        "excluded": f"{len(points.excluded)}, each with its reason below" if points.excluded else "none",
    }
    for name, said in (("n", "range of N"), ("d", "range of D"), ("c", "range of C")):
        if name in points.x:
            low, high = float(points.x[name].min()), float(points.x[name].max())
            found[said] = f"{low:.3g} to {high:.3g} ({np.log10(high / low):.2f} decades)"
    if "c" in points.x:
        number = budgets(points.x["c"])
        found["budgets"] = f"{number.max() + 1}"
    known = judged.fit.known
    found["replicates"] = f"{known.dof} beyond one a cell, sd {known.sigma:.3g}" if known.sigma else "none"
    return found


def _training(judged: Judged) -> dict[str, str]:
    more = judged.fit.points.more

    def span(name: str, form: str) -> str:
        if name not in more:
            return ""
        low, high = float(more[name].min()), float(more[name].max())
        return format(high, form) if low == high else f"{low:{form}} to {high:{form}}"

    matched = more.get("matched")
    return {
        "learning rate": span("lr", ".3g"),
        "warmup, share of a run": span("warmup", ".2f"),
        "decayed over its own length": f"{int(matched.sum())} of {len(matched)} runs"
        if matched is not None
        else "",
        "epochs": span("epochs", ".3g"),
        "steps": span("steps", ".0f"),
    }


def _method(judged: Judged) -> dict[str, str]:
    fit = judged.fit
    method = fit.method
    how = "given" if method.delta != "auto" else "1.345 sd of replicates or residuals"
    dropped = []
    if method.drop_highest_loss:
        dropped.append(f"the {method.drop_highest_loss} highest losses")
    if method.drop_worst_residual:
        dropped.append(f"the {method.drop_worst_residual} worst residuals of a first fit")
    if method.frontier_bins:
        dropped.append(f"all but the lowest of each of {method.frontier_bins} bins of compute")
    weights = fit.points.weight
    return {
        "objective": f"Huber's loss of the {method.residual} residual, delta {fit.found.delta:.4g} ({how})",
        "weights": "equal" if np.ptp(weights) == 0 else f"given, {weights.min():.3g} to {weights.max():.3g}",
        "optimiser": "best of a grid with coefficients solved, then damped Newton from eight starts, which agree",
        "fixed parameters": ", ".join(f"{k} = {v:g}" for k, v in method.fix.items()) or "none",
        "dropped": "; ".join(dropped) or "none",
        "minimum of a curve": fit.optima.found[0].how if fit.optima else "not part of this form",
    }


def _uncertainty(judged: Judged) -> dict[str, str]:
    fit, sigma = judged.fit, judged.fit.law.sigma
    draws = fit.draws
    if len(draws.theta):
        how = f"{len(draws.theta):,} resamples ({draws.how}) of {fit.points.unit_name}s"
    elif draws.withheld:
        how = f"withheld: {fit.points.n_units} {fit.points.unit_name}s tell too little"
    else:
        how = f"delta method, Student's t with {fit.law.dof} degrees of freedom"
    return {
        "intervals of the law": f"{fit.method.level:.0%}, {how}",
        "interval of a run": f"delta method and an sd of {sigma.run:.3g}",
        "residual sd": f"{sigma.residual:.3g}",
        "replicate sd": f"{sigma.replicate:.3g} ({sigma.replicate_dof} degrees of freedom)"
        if sigma.replicate
        else "",
    }


def _validation(judged: Judged) -> dict[str, str]:
    inside = judged.backtest.get("inside") or {"of": 0}
    tested = (
        f"{inside['run']} of {inside['of']} runs of next budgets inside their interval"
        if inside["of"]
        else ""
    )
    forms = ", ".join(f"{f['form']} {f['error']:.2%}" for f in judged.forms if f["error"] is not None)
    farthest = max((b.flops for b in judged.fit.best), default=0.0)
    most = float(judged.fit.points.x["c"].max()) if "c" in judged.fit.points.x else 0.0
    return {
        "back-test": tested,
        "forms on the largest budget, held out": forms,
        "farthest statement": f"{farthest / most:.3g} times the FLOPs of the largest run"
        if most and farthest
        else "",
        "sensitivity": f"{len(judged.sensitivity) - 1} other choices, below"
        if len(judged.sensitivity) > 1
        else "",
    }
