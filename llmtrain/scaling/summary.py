"""Fits, predictions and verifications in a few lines for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmtrain.scaling.intervals import Interval
from llmtrain.scaling.predict import Prediction
from llmtrain.scaling.study import Judged, Study
from llmtrain.scaling.verify import Verified


def summary(study: Study) -> str:
    blocks = ["\n".join(_series(one)) for one in study.series]
    blocks += ["\n".join(_comparison(one)) for one in study.comparisons]
    blocks += [f"series {name} has no law: {error}" for name, error in study.failed.items()]
    return "\n\n".join(blocks)


def _series(judged: Judged) -> Iterator[str]:
    fit = judged.fit
    about, method = fit.points.about, fit.method
    unit = f" {about.score_unit}" if about.score_unit else ""
    yield (
        f"{about.series}: form {method.form} on {len(fit.points)} points of {about.source}"
        f" ({len(fit.points.excluded)} excluded), {about.score}{unit}"
    )
    how = (
        f"{len(fit.draws.theta):,} resamples of {fit.points.unit_name}s"
        if len(fit.draws.theta)
        else ("no method" if fit.draws.withheld else "delta method")
    )
    yield f"  objective {fit.found.objective:.10g}, delta {fit.found.delta:.4g}; {method.level:.0%} intervals by {how}"
    for name, interval in fit.parameters.items():
        yield f"  {name:>8} {interval.value:<12.6g} {_ends(interval)}"
    for best in fit.best:
        parts = [f"C = {best.flops:.4g}: L* {best.loss.value:.5g} {_ends(best.loss)}"]
        if best.n and best.d:
            parts += [f"N* {best.n.value:.4g} {_ends(best.n)}", f"D* {best.d.value:.4g} {_ends(best.d)}"]
        yield "  " + ", ".join(parts)
    for row in judged.sensitivity:
        if row["what"].startswith("with the") and row["law"]:
            law = ", ".join(f"{name} {row['law'][name]:.4g}" for name in fit.law.form.exponents)
            yield f"  {row['what']}: {law}"
    inside = judged.backtest.get("inside")
    if inside and inside["of"]:
        percent = f" ({inside['run_percent']:.0f}%)" if "run_percent" in inside else ""
        yield f"  back-test: {inside['run']} of {inside['of']} runs of the next budgets inside their interval{percent}"
    for caution in judged.cautions:
        yield f"  warning: {caution.text}"


def _comparison(plain: dict) -> Iterator[str]:
    first, second = plain["series"]
    yield f"{second} against {first}"
    for m in plain["multipliers"]:
        yield f"  at loss {m['loss']:.4f} it takes {m['value']:.3g} times the compute [{m['lo']:.3g}, {m['hi']:.3g}]"
    if plain["reason"]:
        yield f"  no compute multiplier: {plain['reason']}"
    for d in plain["exponents"]:
        yield f"  {d['name']} differs by {d['value']:+.4f} [{d['lo']:+.4f}, {d['hi']:+.4f}], p = {d['p']:.3g}"


def _ends(interval: Interval) -> str:
    if interval.lo is None or interval.hi is None:
        return ""
    return f"[{interval.lo:.5g}, {interval.hi:.5g}]"


def between(band: Mapping[str, Any]) -> str:
    """The ends of a band of a prediction or of a verification."""
    if band["lo"] is None or np.isnan(band["lo"]):  # in a file, or not yet in one
        return "withheld"
    return f"[{band['lo']:.4f}, {band['hi']:.4f}]"


def predicted(found: Prediction) -> str:
    plain = found.plain
    law, run = plain["law"], plain["run"]
    given = {"N": found.n, "D": found.d, "C": found.flops}
    lines = [
        f"{', '.join(f'{k} {v:.4g}' for k, v in given.items() if v)}: loss {plain['loss']:.4f}",
        f"  of the law {plain['level']:.0%} {between(law)}",
        f"  of a run {plain['level']:.0%} {between(run)}",
    ]
    return "\n".join(lines + [f"  warning: {text}" for text in plain["warnings"]])


def verified(found: Verified) -> str:
    lines = [f"{'run':<28} {'predicted':>10} {'observed':>10} {'error':>8}  interval of a run"]
    for run in found.plain["runs"][:40]:
        band = run["run_interval"]
        inside = {True: "inside", False: "OUTSIDE", None: ""}[band["inside"]]
        lines.append(
            f"{run['run'][:28]:<28} {run['predicted']:>10.4f} {run['observed']:>10.4f} {run['error']:>+8.2%}"
            f"  {between(band)} {inside}".rstrip()
        )
    if len(found.plain["runs"]) > 40:
        lines.append(f"... and {len(found.plain['runs']) - 40} more")
    inside = found.plain["inside"]
    rivals = ", ".join(f"{k.replace('_', ' ')} {v:.2%}" for k, v in found.plain["baselines"].items())
    said = f"{inside['run']} of {inside['of']} inside the interval of a run, {inside['law']} inside the law's"
    if inside["run"] is None:
        said = "intervals are withheld"
    lines.append(f"mean error {found.plain['mean_absolute_error']:.2%} ({rivals}); {said}")
    return "\n".join(lines)
