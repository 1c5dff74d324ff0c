"""What a fit says of a run that is not there yet."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.errors import ConfigError, NumbersError
from llmtrain.scaling.frontier import has_optimum
from llmtrain.scaling.law import Bands
from llmtrain.scaling.recomputed import same
from llmtrain.scaling.saved import Saved, as_json, plain_best, read_fit, write_json

NAME = "prediction.json"
# the rest is where the fit lay, what it was called by its bytes, and warnings, which follow from these
_SAYS = (
    "form", "series", "score", "convention", "flops", "n", "d", "loss", "law", "run", "level", "optimal",
)  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    flops: float | None
    n: float | None
    d: float | None
    bands: Bands  # of the one run
    beyond: float | None  # its FLOPs over the most that was fitted
    plain: dict[str, Any]


def predict(
    source: Saved | str | Path,
    *,
    flops: float | None = None,
    n: float | None = None,
    d: float | None = None,
    experts: float | None = None,
    unique: float | None = None,
) -> Prediction:
    """Of the best run at ``flops``, or of the run of ``n`` parameters on ``d`` tokens.

    A form that knows experts wants their number, one that knows repeated tokens takes how many are ``unique`` (all, by
    default). Raises ConfigError for another choice, or where the form knows nothing of what is asked.
    """
    saved = source if isinstance(source, Saved) else read_fit(source)
    given = {"flops": flops, "n": n, "d": d, "experts": experts, "unique": unique}
    for name, value in given.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ConfigError(f"--{name} {value} must be above 0")
    asked = {name: value for name, value in given.items() if value is not None}
    named = set(asked)
    best: dict[str, Any] = {}
    if flops is not None and named == {"flops"}:
        n, d, best = _best(saved, flops)
    else:
        _complete(saved, named)
        if n is not None and d is not None:
            flops = float(saved.law.convention.per_token(np.array(n)) * d)
    x = {
        "c": flops,
        "n": n,
        "d": d,
        "experts": experts,
        "unique": unique or d,
    }  # by default every token is fresh
    bands = saved.law.bands({k: np.array([v]) for k, v in x.items() if v is not None}, saved.level)
    beyond = flops / saved.most_flops if flops and saved.most_flops else None
    plain = _plain(saved, flops, n, d, bands, beyond, best) | {"asked": asked}
    return Prediction(flops, n, d, bands, beyond, plain)


def seal(folder: Path, found: Prediction, *, force: bool = False) -> Path:
    """Write ``prediction.json``; one that says the same stays as it is.

    Raises ConfigError where another one is: it was made before the runs that judge it.
    """
    path = folder / NAME
    if path.exists() and not force:
        if says_the_same(_read(path), found):
            return path
        raise ConfigError(
            f"{path} holds another prediction, and what was predicted before its runs stays: give another folder "
            "with --out, or write over it with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found.plain)
    return path


def says_the_same(written: dict[str, Any], found: Prediction) -> bool:
    """Whether a prediction as written is ``found``, computed again.

    Whatever way leads to the fit, and whatever the last digits in its file.
    """
    plain = json.loads(as_json(found.plain))
    return same(*({key: one.get(key) for key in _SAYS} for one in (written, plain)))


def _read(path: Path) -> dict[str, Any]:
    """What is written there; nothing where that is no prediction."""
    try:
        return dict(json.loads(path.read_text("utf-8", "replace")))
    except (ValueError, TypeError):
        return {}


def _best(saved: Saved, flops: float) -> tuple[float | None, float | None, dict[str, Any]]:
    """N, D and all else of the best run, where the form has one."""
    if not (saved.lines or has_optimum(saved.law.form) or saved.law.form.needs == ("c",)):
        raise ConfigError(
            f"{saved.path}: form {saved.plain['form']} knows no FLOPs; ask with {_wanted(saved)}"
        )
    found = saved.best_at(flops)
    n, d = (one.value if one else None for one in (found.n, found.d))
    if not all(np.isfinite(value) for value in (n, d, found.loss.value) if value is not None):
        raise NumbersError(
            f"{saved.path}: the fitted law has no optimum at {flops:.4g} FLOPs (an exponent may be below 0): "
            "ask with --n and --d, or fit again on runs that determine it"
        )
    return n, d, plain_best(found)


def _complete(saved: Saved, named: set[str]) -> None:
    """A run must be given by what its form needs, and by nothing else."""
    needs = set(saved.law.form.needs)
    if saved.lines or needs == {"c"}:
        raise ConfigError(
            f"{saved.path}: form {saved.plain['form']} is a law of compute alone; ask with --flops"
        )
    if named - {"unique"} != needs - {"unique", "c"} or ("unique" in named and "unique" not in needs):
        alone = "--flops alone, or " if has_optimum(saved.law.form) else ""
        raise ConfigError(f"give {alone}{_wanted(saved)} together")


def _wanted(saved: Saved) -> str:
    return " and ".join(f"--{name}" for name in saved.law.form.needs if name not in ("c", "unique"))


def _plain(
    saved: Saved,
    flops: float | None,
    n: float | None,
    d: float | None,
    bands: Bands,
    beyond: float | None,
    best: dict[str, Any],
) -> dict[str, Any]:
    warnings = []
    if saved.draws.withheld:
        units, unit = saved.plain["n_units"], saved.plain["unit"]
        warnings.append(f"intervals are withheld: {units} {unit}s do not tell how {unit}s scatter")
    if beyond is not None and beyond > 10:
        warnings.append(
            f"{beyond:.3g} times the FLOPs of the largest run fitted: beyond 10 the interval is not to be relied on"
        )
    return {
        "fit": str(saved.path),
        "fit_sha256": saved.sha256,
        "form": saved.plain["form"],
        "series": saved.about.series,
        "score": {
            "name": saved.about.score,
            "unit": saved.about.score_unit,
            "eval_hash": saved.about.eval_hash,
        },
        "convention": saved.plain["convention"],
        "flops": flops,
        "n": n,
        "d": d,
        "loss": float(bands.loss[0]),
        "law": {"lo": float(bands.law_lo[0]), "hi": float(bands.law_hi[0])},
        "run": {"lo": float(bands.run_lo[0]), "hi": float(bands.run_hi[0])},
        "level": saved.level,
        "optimal": best or None,
        "beyond": beyond,
        "warnings": warnings,
    }
