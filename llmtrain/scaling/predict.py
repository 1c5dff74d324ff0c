"""What a fit says of a run that is not there yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.errors import ConfigError
from llmtrain.scaling.law import Bands
from llmtrain.scaling.saved import Saved, plain_best, read_fit

NAME = "prediction.json"


@dataclass(frozen=True)
class Prediction:
    flops: float | None
    n: float | None
    d: float | None
    bands: Bands  # of the one run
    beyond: float | None  # its FLOPs over the most that was fitted
    plain: dict[str, Any]


def predict(
    source: Saved | str | Path, *, flops: float | None = None, n: float | None = None, d: float | None = None
) -> Prediction:
    """Of the best run at ``flops``, or of the run of ``n`` parameters on ``d`` tokens.

    Raises ConfigError for another choice of the three, or where the form knows nothing of what is asked.
    """
    saved = source if isinstance(source, Saved) else read_fit(source)
    for name, value in (("flops", flops), ("n", n), ("d", d)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ConfigError(f"--{name} {value} must be above 0")
    best: dict[str, Any] = {}
    if flops is not None and n is None and d is None:
        found = saved.best_at(flops)
        best = plain_best(found)
        n, d = (found.n.value if found.n else None), (found.d.value if found.d else None)
    elif n is not None and d is not None and flops is None:
        if saved.lines or "n" not in saved.law.form.needs:
            raise ConfigError(
                f"{saved.path}: form {saved.plain['form']} is a law of compute alone; ask with --flops"
            )
        flops = float(saved.law.convention.per_token(np.array(n)) * d)
    else:
        raise ConfigError("give --flops alone, or --n and --d together")
    bands = saved.law.bands(_inputs(flops, n, d), saved.level)
    beyond = flops / saved.most_flops if saved.most_flops else None
    return Prediction(flops, n, d, bands, beyond, _plain(saved, flops, n, d, bands, beyond, best))


def _inputs(flops: float, n: float | None, d: float | None) -> dict[str, np.ndarray]:
    given = {"c": flops, "n": n, "d": d, "unique": d}  # every token fresh, where that matters
    return {key: np.array([value]) for key, value in given.items() if value is not None}


def _plain(
    saved: Saved,
    flops: float,
    n: float | None,
    d: float | None,
    bands: Bands,
    beyond: float | None,
    best: dict[str, Any],
) -> dict[str, Any]:
    warnings = []
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
