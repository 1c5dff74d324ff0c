"""``report.html``: one self-contained page of a study, with its figures, tables, warnings and checklist."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.best import best_along
from llmtrain.scaling.checklist import checklist
from llmtrain.scaling.figures.canvas import Drawn, draw_and_write, loss_label
from llmtrain.scaling.figures.curves import allocation, envelope, isoflop
from llmtrain.scaling.figures.fitted import agreement, contours, profile, residuals
from llmtrain.scaling.fit import Fit
from llmtrain.scaling.page import embedded, rendered
from llmtrain.scaling.points import sha256_of
from llmtrain.scaling.predict import NAME as PREDICTION
from llmtrain.scaling.saved import NAME as FIT
from llmtrain.scaling.study import Judged, Study
from llmtrain.scaling.verify import NAME as VERIFIED

NAME = "report.html"
FIGURES: tuple[Callable[[list[Judged]], Drawn | None], ...] = (
    isoflop,
    envelope,
    allocation,
    contours,
    residuals,
    agreement,
    profile,
)
_PLACES = 61  # of compute, where the page's own predictions are made
_BEYOND = 100.0


def write_report(study: Study, folder: Path) -> None:
    """Figures as PNG and SVG under ``figures/``, and the page."""
    drawn = draw_and_write(study.series, FIGURES, folder / "figures")
    page = render(study, drawn, folder)
    partial = folder / f"{NAME}.tmp"
    partial.write_text(page, encoding="utf-8")
    partial.replace(folder / NAME)


def render(study: Study, drawn: list[Drawn], folder: Path) -> str:
    """The page; predictions and verifications that lie in ``folder`` are on it. All text of users is escaped."""
    return rendered(
        "llmtrain.scaling",
        "report.html.j2",
        series=[_series(one) for one in study.series],
        comparisons=study.comparisons,
        failed=study.failed,
        figures=[
            {
                "title": f.title,
                "caption": f.caption,
                "source": embedded(folder / "figures" / f"{f.name}.svg"),
            }
            for f in drawn
        ],
        explorer={"series": [_explorer(one.fit) for one in study.series if one.fit.best]},
        prediction=_beside(folder, PREDICTION),
        verified=_beside(folder, VERIFIED),
    )


def _series(judged: Judged) -> dict[str, Any]:
    fit = judged.fit
    items = checklist(judged)
    return {
        "name": fit.points.about.series,
        "form": fit.method.form,
        "formula": fit.law.form.formula,
        "loss": loss_label(fit.points.about),
        "source": fit.points.about.source,
        "parameters": fit.parameters,
        "best": fit.best,
        "cautions": judged.cautions,
        "sensitivity": judged.sensitivity,
        "exponents": [n for n in ("E", *fit.law.form.exponents) if n in fit.law.parameters],
        "backtest": judged.backtest,
        "forms": judged.forms,
        "optima": fit.optima,
        "excluded": fit.points.excluded,
        "checklist": items,
        "unstated": sum(not item.stated for item in items),
        "level": fit.method.level,
        "objective": fit.found.objective,
        "n_points": len(fit.points),
    }


def _explorer(fit: Fit) -> dict[str, Any]:
    """What the page's own curve and table are drawn from: runs, and predictions at many budgets."""
    x, loss = fit.points.x, fit.points.loss
    predicted = np.full(len(loss), np.nan) if fit.lines else fit.law.loss(x)
    runs = [
        {
            "run": str(fit.points.run[i]),
            "c": float(x["c"][i]),
            "n": float(x["n"][i]) if "n" in x else None,
            "d": float(x["d"][i]) if "d" in x else None,
            "loss": float(loss[i]),
            "predicted": None if np.isnan(predicted[i]) else float(predicted[i]),
        }
        for i in range(len(loss))
    ]
    return {
        "name": fit.points.about.series,
        "loss": loss_label(fit.points.about),
        "data": fit.points.about.tokens_unit,
        "most": float(x["c"].max()),
        "runs": runs,
        "curve": _places(fit, np.geomspace(x["c"].min(), _BEYOND * x["c"].max(), _PLACES)),
    }


def _places(fit: Fit, flops: Float[np.ndarray, " k"]) -> list[dict[str, float | None]]:
    """The best run at each budget, with the two bands of its loss; none of them where they are withheld."""
    level = fit.method.level
    best = [fit.best_at(float(c)) for c in flops] if fit.lines else best_along(fit.law, flops, level)
    x = {"c": flops}
    if all(b.n and b.d for b in best):
        x |= {name: np.array([getattr(b, name).value for b in best]) for name in "nd"}
    bands = fit.law.bands(x | {"unique": x.get("d", flops)}, level)
    columns = x | {name: getattr(bands, name) for name in ("loss", "law_lo", "law_hi", "run_lo", "run_hi")}
    empty: dict[str, float | None] = {"n": None, "d": None}
    return [
        empty
        | {name: float(column[i]) if np.isfinite(column[i]) else None for name, column in columns.items()}
        for i in range(len(flops))
    ]


def _beside(folder: Path, name: str) -> dict[str, Any] | None:
    """A prediction or a verification, if it is of this very fit."""
    path, of = folder / name, folder / FIT
    if not (path.exists() and of.exists()):
        return None
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return made if made.get("fit_sha256") == sha256_of(of) else None
