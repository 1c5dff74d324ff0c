"""Two series side by side: how much compute one needs for the other's loss, and whether their exponents differ."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from llmtrain.errors import DataError
from llmtrain.scaling.alike import SHARED
from llmtrain.scaling.best import lowest_loss
from llmtrain.scaling.fit import Fit
from llmtrain.scaling.frontier import knows_flops
from llmtrain.scaling.intervals import intervals
from llmtrain.scaling.law import Law

_SHARED = {field: shared.many for field, shared in SHARED.items()} | {"n_convention": "counts of N"}
_SAME_SCORE = ("score", "score_unit", "eval_hash")
_LOSSES = 3  # at which multipliers are stated
_ANY_FLOPS = 1e18  # where the search for a loss begins
_EXACT = 1e-12  # of ln L
_STEPS, _LONGEST, _APART = 25, 8.0, 1e-3  # of it, in ln C


@dataclass(frozen=True)
class Multiplier:
    """The second series' compute over the first's, where both reach ``loss``."""

    loss: float
    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Difference:
    """Of an exponent, the second's less the first's, with the p of no difference."""

    name: str
    value: float
    lo: float
    hi: float
    p: float


def compare(first: Fit, second: Fit) -> dict[str, Any]:
    """Raises DataError for series of other corpora, tokenizers, versions of Python or counts of parameters."""
    ours, theirs = first.points.about, second.points.about
    for name, said in _SHARED.items():
        if getattr(ours, name) != getattr(theirs, name):
            raise DataError(
                f"series {ours.series} and {theirs.series} have different {said} "
                f"({getattr(ours, name)}; {getattr(theirs, name)}): they cannot be compared"
            )
    reason = None
    if any(getattr(ours, name) != getattr(theirs, name) for name in _SAME_SCORE):
        reason = f"scores {ours.score} and {theirs.score} are not one axis"
    elif blind := [f.law.form.name for f in (first, second) if not knows_flops(f.law.form)]:
        reason = f"form {blind[0]} knows no FLOPs"
    return {
        "series": [ours.series, theirs.series],
        "multipliers": [vars(m) for m in multipliers(first, second)] if reason is None else [],
        "reason": reason,
        "exponents": [vars(d) for d in differences(first, second)],
    }


def multipliers(first: Fit, second: Fit) -> list[Multiplier]:
    """At losses that both laws come to within the compute that was fitted: beyond it a multiplier is extrapolation."""
    found = []
    level, dof = first.method.level, min(first.law.dof, second.law.dof)
    t = float(stdtrit(dof, 0.5 + level / 2))
    for loss in _common_losses(first, second):
        both = [
            intervals(f.law, f.draws, partial(_log_compute, f.law, loss), level)["c"] for f in (first, second)
        ]
        if any(b.se is None or not np.isfinite(b.value) for b in both):
            continue
        value = both[1].value - both[0].value
        width = t * float(np.hypot(both[0].se, both[1].se))  # type: ignore[arg-type]
        found.append(Multiplier(loss, *(float(np.exp(v)) for v in (value, value - width, value + width))))
    return found


def _common_losses(first: Fit, second: Fit) -> list[float]:
    ranges = []
    for f in (first, second):
        c = f.points.x["c"]
        ends = lowest_loss(f.law, np.repeat(f.law.theta[None], 2, 0), np.array([c.min(), c.max()]))
        ranges.append((float(ends[1]), float(ends[0])))
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    return [] if low >= high else np.linspace(high, low, _LOSSES + 2)[1:-1].tolist()


def differences(first: Fit, second: Fit) -> list[Difference]:
    names = [n for n in first.parameters if n in second.parameters and n in _exponents(first)]
    level, dof = first.method.level, min(first.law.dof, second.law.dof)
    found = []
    for name in names:
        a, b = first.parameters[name], second.parameters[name]
        if a.se is None or b.se is None:
            continue
        value, se = b.value - a.value, float(np.hypot(a.se, b.se))
        width = float(stdtrit(dof, 0.5 + level / 2)) * se
        p = 2 * float(stdtr(dof, -abs(value) / se)) if se else float(value == 0)
        found.append(Difference(name, value, value - width, value + width, p))
    return found


def _exponents(found: Fit) -> tuple[str, ...]:
    return (
        *found.law.form.exponents,
        *(("a", "b") if "N_1" in found.parameters or "B" in found.parameters else ()),
    )


def _log_compute(law: Law, loss: float, theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
    """ln C at which L*(C) is ``loss``, by Newton's steps; nan where it never is."""

    def above(u: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.log(lowest_loss(law, theta, np.exp(u))) - np.log(loss)

    u = np.full(len(theta), np.log(_ANY_FLOPS))
    for _ in range(_STEPS):
        off = above(u)
        if (np.abs(off) < _EXACT).all():
            break
        slope = (above(u + _APART) - above(u - _APART)) / (2 * _APART)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = u - np.clip(off / slope, -_LONGEST, _LONGEST)
    return {"c": np.where(np.abs(off) < _EXACT, u, np.nan)}
