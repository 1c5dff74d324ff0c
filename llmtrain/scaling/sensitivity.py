"""How much a law hangs on choices: delta, and the points that fit it worst."""

from dataclasses import replace
from typing import Any

import numpy as np

from llmtrain.errors import UserError
from llmtrain.scaling.best import best_without_intervals
from llmtrain.scaling.fit import Fit, fit_law
from llmtrain.scaling.law import Law

_DELTAS: tuple[float, ...] = (1e-4, 1e-3, 1e-2, np.inf)
_WORST = (1, 2, 5)


def sensitivity(found: Fit) -> list[dict[str, Any]]:
    """The law under each other choice, with the exponent a and the loss that it predicts at ten times the FLOPs."""
    if found.lines:
        return []
    settled = replace(
        found.method, bootstrap=0, drop_highest_loss=0, drop_worst_residual=0, frontier_bins=None, at=()
    )
    trials = [(f"delta {delta:g}", replace(settled, delta=delta)) for delta in _DELTAS]
    trials += [
        (f"without the {k} worst residual{'s' if k > 1 else ''}", replace(settled, drop_worst_residual=k))
        for k in _WORST
        if len(found.points) - k > 2 * len(found.law.form.parameters)
    ]
    if len(found.given) > len(found.points) and not found.method.frontier_bins:
        kept_all = f"with the {len(found.given) - len(found.points)} dropped points"
        trials.append((kept_all, replace(settled, delta=found.method.delta)))
    most = float(found.points.x["c"].max()) if found.best else None
    rows = [_row("as fitted", found.law, most)]
    for what, method in trials:
        try:
            points = found.given if what.startswith("with the") else found.points
            rows.append(_row(what, fit_law(points, method), most))
        except UserError as error:
            rows.append({"what": what, "law": None, "a": None, "loss": None, "reason": str(error)})
    return rows


def _row(what: str, law: Law, most: float | None) -> dict[str, Any]:
    best = best_without_intervals(law, 10 * most) if most else None
    return {
        "what": what,
        "law": law.parameters,
        "a": best.a if best else None,
        "loss": best.loss.value if best else None,
        "reason": None,
    }
