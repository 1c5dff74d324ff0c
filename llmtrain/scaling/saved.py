"""``fit.json``: a fit as data, at full precision, and a fit read back from it for predictions."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config import to_plain
from llmtrain.errors import ConfigError, DataError
from llmtrain.scaling.best import Best, best_at, best_on_lines
from llmtrain.scaling.bins import undominated
from llmtrain.scaling.columns import Columns
from llmtrain.scaling.fit import Fit
from llmtrain.scaling.flops import Convention
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.intervals import Interval
from llmtrain.scaling.law import Law, Sigma
from llmtrain.scaling.optima import Optimum
from llmtrain.scaling.points import About
from llmtrain.scaling.regression import Line
from llmtrain.scaling.resample import NO_DRAWS, WITHHELD, Draws
from llmtrain.scaling.seen import fitted_rows

NAME = "fit.json"
_VERSION = 1


def plain_fit(found: Fit) -> dict[str, Any]:
    """Everything that a reader, or a prediction, needs; ``state`` is for the latter."""
    points, law, method = found.points, found.law, found.method
    named = found.parameters
    return {
        "version": _VERSION,
        "form": method.form,
        "formula": law.form.formula if not found.lines else f"N* = N_1 C^a, D* = D_1 C^b, {law.form.formula}",
        "law": {name: interval.value for name, interval in named.items()},
        "objective": found.found.objective,
        "residual": method.residual,
        "delta": found.found.delta,
        "n_points": len(points),
        "n_units": points.n_units,
        "unit": points.unit_name,
        "level": method.level,
        "standard_errors": {name: interval.se for name, interval in named.items()},
        "intervals": {name: [interval.lo, interval.hi] for name, interval in named.items()},
        "resampling": {
            "how": _how(found),
            "resamples": len(found.draws.theta),
            "failed": found.draws.failed,
        },
        "sigma": {
            "residual": law.sigma.residual,
            "replicate": law.sigma.replicate,
            "replicate_dof": law.sigma.replicate_dof,
            "curves": law.sigma.curves,
        },
        "optimal": {"at": [plain_best(best) for best in found.best]},
        "slopes": [{"flops": b.flops, "a": b.a, "b": b.b} for b in found.best if b.a is not None],
        "minima": _plain_minima(found),
        "excluded": [asdict(e) for e in points.excluded],
        "about": asdict(points.about),
        "convention": {"n": points.about.n_convention, "flops": points.convention.name},
        "method": to_plain(method),
        "fitted": [str(name) for name in points.run],
        "rows": fitted_rows(found),
        "range": {key: [float(column.min()), float(column.max())] for key, column in points.x.items()},
        "baselines": baselines(found),
        "state": _state(found),
    }


def _how(found: Fit) -> str:
    if found.draws.withheld:
        return found.draws.how
    if found.lines:
        return "regression through the optima, or noise on the curves where it scatters them further"
    return found.draws.how if len(found.draws.theta) else "delta method"


def plain_best(best: Best) -> dict[str, Any]:
    plain: dict[str, Any] = {"flops": best.flops}
    for name in ("n", "d", "loss"):
        interval = getattr(best, name) or Interval(math.nan, None, None, None)
        plain |= {name: interval.value, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}
    return plain


def _plain_minima(found: Fit) -> dict[str, list[dict[str, Any]]]:
    if found.optima is None:
        return {}

    def table(optima: tuple[Optimum, ...]) -> list[dict[str, Any]]:
        return [asdict(o) for o in optima]

    chosen = found.optima.found
    return {chosen[0].how: table(chosen)} | {k: table(v) for k, v in found.optima.others.items()}


def baselines(found: Fit) -> dict[str, Any]:
    """What a prediction has to beat: no change from the lowest loss seen, and a power law through the lowest runs."""
    points = found.points
    plain: dict[str, Any] = {"no_change": float(points.loss.min())}
    if "c" in points.x:
        lowest = undominated(points)
        if len(lowest) >= 2:
            slope, offset = np.polyfit(np.log(points.x["c"][lowest]), np.log(points.loss[lowest]), 1)
            plain["power_law"] = {"A": float(np.exp(offset)), "alpha": float(-slope)}
    return plain


def _state(found: Fit) -> dict[str, Any]:
    law = found.law
    state: dict[str, Any] = {
        "form": law.form.name,
        "theta": law.theta.tolist(),
        "centre": law.centre,
        "covariance": law.covariance.tolist(),
        "robust": law.robust.tolist(),
        "fixed": law.fixed,
        "dof": law.dof,
        "convention": asdict(law.convention),
    }
    if found.lines:
        state["lines"] = [
            asdict(one) | {"covariance": one.covariance.tolist(), "noise": one.noise.tolist()}
            for one in found.lines
        ]
    return state


def write_json(path: Path, plain: dict[str, Any]) -> None:
    """Whole or not at all; infinities as "inf", what is not a number as null."""
    partial = path.with_suffix(".tmp")
    partial.write_text(as_json(plain), encoding="utf-8")
    partial.replace(path)


def as_json(plain: dict[str, Any]) -> str:
    return json.dumps(_finite(plain), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


@dataclass(frozen=True)
class Saved:
    """A fit as read back: what predictions and verifications need."""

    path: Path
    sha256: str
    law: Law
    lines: tuple[Line, Line] | None
    about: About
    level: float
    fitted: frozenset[str]
    most_flops: float | None
    plain: dict[str, Any]

    def columns_with(self, given: Columns) -> Columns:
        """The fit's columns, where ``given`` names no others; conditions are of the rows fitted, and stay behind."""
        kept = {
            key: value for key, value in self.plain["columns"].items() if key not in ("_target_", "where")
        }
        named = {key: value for key, value in to_plain(given).items() if key != "_target_" and value}
        return Columns(**(kept | named | {"where": given.where}))

    def best_at(self, flops: float) -> Best:
        if self.lines:
            return best_on_lines(self.lines, self.law, self.draws, flops, self.level)
        return best_at(self.law, self.draws, flops, self.level)

    @property
    def draws(self) -> Draws:
        """None are kept; whether intervals are withheld is."""
        return WITHHELD if self.plain["resampling"]["how"] == WITHHELD.how else NO_DRAWS


def read_fit(folder: str | Path, series: str | None = None) -> Saved:
    """``fit.json`` of a folder; ``series`` names one where several were fitted.

    Raises DataError where there is none, or one of another version; ConfigError where a series must be named.
    """
    path = Path(folder) / NAME if Path(folder).is_dir() else Path(folder)
    try:
        raw = path.read_bytes()
        plain = json.loads(raw)
        if plain["version"] != _VERSION:
            raise DataError(
                f"{path} is of version {plain['version']}, and this reads version {_VERSION}: fit again"
            )
        return _saved(path, hashlib.sha256(raw).hexdigest(), _one(path, plain, series))
    except OSError:
        raise DataError(f"{path}: there is no fit; make one with scripts/fit.py ... --out {folder}") from None
    except ConfigError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is no fit as scripts/fit.py writes it: {error!r}") from None


def _one(path: Path, plain: dict[str, Any], series: str | None) -> dict[str, Any]:
    found = plain.get("series", {plain.get("about", {}).get("series"): plain})
    if series is None and len(found) == 1:
        return dict(next(iter(found.values())))
    if series not in found:
        raise ConfigError(
            f"{path} has the series {', '.join(map(str, found))}: give one of them with --series"
        )
    return dict(found[series])


def _saved(path: Path, sha256: str, plain: dict[str, Any]) -> Saved:
    state, sigma = plain["state"], plain["sigma"]
    k = state["convention"]
    within = k.get("within")  # fits of earlier versions have none
    convention = Convention(
        k["name"], tuple(k["coefficients"]), k["scatter"], (within[0], within[1]) if within else None
    )
    law = Law(
        form=FORMS[state["form"]],
        theta=np.array(state["theta"]),
        centre=state["centre"],
        covariance=np.array(state["covariance"]),
        robust=np.array(state["robust"]),
        fixed=state["fixed"],
        log=plain["residual"] == "log",
        sigma=Sigma(sigma["residual"], sigma["replicate"], sigma["replicate_dof"], sigma.get("curves")),
        dof=state["dof"],
        convention=convention,
    )
    lines = [_line(one) for one in state.get("lines", [])]
    return Saved(
        path=path,
        sha256=sha256,
        law=law,
        lines=(lines[0], lines[1]) if lines else None,
        about=About(**plain["about"]),
        level=plain["level"],
        fitted=frozenset(plain["fitted"]),
        most_flops=plain["range"].get("c", [None, None])[1],
        plain=plain,
    )


def _line(plain: dict[str, Any]) -> Line:
    """Fits of earlier versions do not tell the noise of their curves apart."""
    found = {key: np.array(plain.get(key, np.zeros((2, 2)))) for key in ("covariance", "noise")}
    return Line(**(plain | found))
