"""A fit against runs that it never saw: predicted, observed, inside the interval or not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.errors import DataError, UserError
from llmtrain.scaling.alike import SHARED
from llmtrain.scaling.law import Bands
from llmtrain.scaling.points import Points
from llmtrain.scaling.predict import NAME as PREDICTION
from llmtrain.scaling.predict import predict, says_the_same
from llmtrain.scaling.saved import Saved, read_fit
from llmtrain.scaling.seen import seen

NAME = "verify.json"
_PERCENT_FROM = 20  # of fewer runs a percentage says more than they do
_SHARED = {
    "score": "score",
    "score_unit": "unit of the score",
    "eval_hash": "held-out set",
    "n_convention": "count of parameters",
    "tokens_unit": "unit of data",
} | {field: shared.one for field, shared in SHARED.items()}


@dataclass(frozen=True)
class Verified:
    """Errors are observed over predicted, less one."""

    points: Points
    bands: Bands
    error: np.ndarray
    in_law: np.ndarray
    in_run: np.ndarray
    plain: dict[str, Any]


def verify(source: Saved | str | Path, points: Points) -> Verified:
    """Raises DataError where all runs were fitted, or are not comparable with those that were."""
    saved = source if isinstance(source, Saved) else read_fit(source)
    _comparable(saved, points)
    fitted = _fitted(saved, points)
    if fitted.all():
        raise DataError(f"{points.about.source}: all {len(points)} runs were fitted; give runs that were not")
    points = points.keep(~fitted, "it was fitted")
    bands = saved.law.bands(points.x, saved.level)
    loss = points.loss
    in_law = (bands.law_lo <= loss) & (loss <= bands.law_hi)
    in_run = (bands.run_lo <= loss) & (loss <= bands.run_hi)
    error = loss / bands.loss - 1
    return Verified(points, bands, error, in_law, in_run, _plain(saved, points, bands, error, in_law, in_run))


def _fitted(saved: Saved, points: Points) -> np.ndarray:
    """By inputs and loss, wherever they were read from; in the fit's own file or folder by name too."""
    fitted = np.zeros(len(points), bool)
    if "rows" in saved.plain:  # fits of earlier versions have none
        fitted |= seen(saved.plain["rows"], points)
    same_folder = points.about.source == saved.about.source and Path(points.about.source).is_dir()
    if points.about.sha256 == saved.about.sha256 or same_folder:
        fitted |= np.array([str(name) in saved.fitted for name in points.run])
    return fitted


def _comparable(saved: Saved, points: Points) -> None:
    points.require(saved.law.form.needs, f"form {saved.law.form.name}")
    named_by_user = ("score", "n_convention") if saved.about.table and points.about.table else ()
    for name, said in _SHARED.items():
        if name in named_by_user:
            continue
        ours, theirs = getattr(saved.about, name), getattr(points.about, name)
        if ours != theirs:
            raise DataError(
                f"{points.about.source}: another {said} ({theirs or 'none'}) than that of {saved.path} "
                f"({ours or 'none'}); a law holds for what it was fitted on"
            )


def _plain(
    saved: Saved, points: Points, bands: Bands, error: np.ndarray, in_law: np.ndarray, in_run: np.ndarray
) -> dict[str, Any]:
    rivals = {name: points.loss / value - 1 for name, value in _baselines(saved, points).items()}
    stated = not saved.draws.withheld
    runs = []
    for i, name in enumerate(points.run):
        run: dict[str, Any] = {"run": str(name)}
        run |= {key: float(column[i]) for key, column in points.x.items() if key in ("n", "d", "c")}
        run |= {
            "predicted": float(bands.loss[i]),
            "observed": float(points.loss[i]),
            "error": float(error[i]),
            "law": {
                "lo": float(bands.law_lo[i]),
                "hi": float(bands.law_hi[i]),
                "inside": bool(in_law[i]) if stated else None,
            },
            "run_interval": {
                "lo": float(bands.run_lo[i]),
                "hi": float(bands.run_hi[i]),
                "inside": bool(in_run[i]) if stated else None,
                "half_width": float(0.5 * (bands.run_hi[i] - bands.run_lo[i]) / bands.loss[i]),
            },
        }
        run["baselines"] = {rival: float(errors[i]) for rival, errors in rivals.items()}
        if saved.lines and "n" in points.x:
            run["n_over_optimal"] = float(points.x["n"][i] / saved.best_at(float(points.x["c"][i])).n.value)  # type: ignore[union-attr]
        runs.append(run)
    n = len(runs)
    return {
        "fit": str(saved.path),
        "fit_sha256": saved.sha256,
        "prediction": _prediction(saved),
        "source": points.about.source,
        "level": saved.level,
        "runs": runs,
        "mean_absolute_error": float(np.abs(error).mean()),
        "mean_error": float(error.mean()),
        "inside": {
            "law": int(in_law.sum()) if stated else None,
            "run": int(in_run.sum()) if stated else None,
            "of": n,
        }
        | ({"percent": 100 * float(in_run.mean())} if stated and n >= _PERCENT_FROM else {}),
        "baselines": {name: float(np.abs(errors).mean()) for name, errors in rivals.items()},
        "excluded": [{"run": e.run, "reason": e.reason} for e in points.excluded],
    }


def _baselines(saved: Saved, points: Points) -> dict[str, np.ndarray]:
    known = saved.plain["baselines"]
    found = {"no_change": np.full(len(points), known["no_change"])}
    if "power_law" in known and "c" in points.x:
        law = known["power_law"]
        found["power_law"] = law["A"] * points.x["c"] ** -law["alpha"]
    return found


def _prediction(saved: Saved) -> dict[str, Any] | None:
    """The prediction beside the fit, and whether it is of this very fit, or of one that predicts the same."""
    path = saved.path.parent / PREDICTION
    if not path.exists():
        return None
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        same_fit = made["fit_sha256"] == saved.sha256 or _predicts(saved, made)
        return {"file": path.name, "same_fit": same_fit, "loss": made["loss"]}
    except (ValueError, LookupError, TypeError):
        raise DataError(f"{path} is no prediction as scripts/predict.py writes it; make it again") from None


def _predicts(saved: Saved, made: dict[str, Any]) -> bool:
    """Whether the fit as it is now makes the same prediction again: its file may have been written anew elsewhere."""
    if "asked" not in made:  # predictions of earlier versions do not say
        return False
    try:
        return says_the_same(made, predict(saved, **made["asked"]))
    except UserError:  # it knows nothing of what was asked
        return False
