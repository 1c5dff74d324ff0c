"""A law against its points: contours, residuals, predictions, and the profile of E."""

import numpy as np

from llmtrain.scaling.figures.canvas import (
    GREY,
    INK,
    Drawn,
    colours,
    conventions,
    label_of,
    log_axes,
    loss_label,
    new,
    plain,
    size_label,
    titled,
)
from llmtrain.scaling.frontier import has_optimum, optimum
from llmtrain.scaling.study import Judged


def contours(study: list[Judged]) -> Drawn | None:
    shown = [one for one in study if has_optimum(one.fit.law.form) and not one.fit.lines]
    if not shown:
        return None
    figure, axes = new(len(shown), width=max(7.0, 4.8 * len(shown)), height=4.6)
    for axis, one in zip(axes, shown, strict=True):
        fit = one.fit
        x = fit.points.x
        n = np.geomspace(x["n"].min() / 1.5, 4 * x["n"].max(), 90)
        d = np.geomspace(x["d"].min() / 1.5, 4 * x["d"].max(), 90)
        nn, dd = np.meshgrid(n, d)
        flat = {"n": nn.ravel(), "d": dd.ravel(), "unique": dd.ravel()}
        flat |= {"c": fit.law.convention.per_token(flat["n"]) * flat["d"]}
        loss = fit.law.loss(flat).reshape(nn.shape)
        low, high = float(loss.min()), float(fit.points.loss.max())
        drawn = axis.contour(
            nn, dd, loss, levels=np.geomspace(low, max(high, 1.05 * low), 14), cmap="viridis_r", linewidths=1
        )
        axis.clabel(drawn, fmt="%.3g", fontsize=7)
        axis.scatter(x["n"], x["d"], s=12, color=INK, alpha=0.55, linewidths=0, label="runs")
        at = np.geomspace(x["c"].min() / 2, 20 * x["c"].max(), 30)
        law = fit.law
        best = optimum(law.form, np.tile(law.theta, (len(at), 1)), law.centre, law.convention, at)
        axis.plot(best.n, best.d, color="#d9480f", label="compute-optimal")
        axis.set(xlim=(n[0], n[-1]), ylim=(d[0], d[-1]))
        log_axes(axis, "xy")
        axis.set(xlabel=size_label("n", fit.points.about), ylabel=size_label("d", fit.points.about))
        titled(axis, fit.points.about)
        axis.legend(loc="lower right")
    caption = "Contours of L(N, D) under the fitted law. "
    return Drawn("contours", "The fitted surface", caption + conventions(shown[0].fit.points), figure)


def residuals(study: list[Judged]) -> Drawn | None:
    """Observed over predicted, less one, against each count."""
    names = [name for name in ("n", "d", "c") if all(name in one.fit.points.x for one in study)]
    shown = [one for one in study if not one.fit.lines]
    if not names or not shown:
        return None
    figure, axes = new(len(names), width=3.2 * len(names) + 0.6, height=3.4)
    for axis, name in zip(axes, names, strict=True):
        axis.axhline(0, color=GREY, lw=1)
        for colour, one in colours(shown):
            points = one.fit.points
            error = 100 * (points.loss / one.fit.law.loss(points.x) - 1)
            axis.plot(points.x[name], error, "o", ms=3, alpha=0.6, color=colour, label=label_of(points.about))
            if one.fit.law.log:
                for side in (-1, 1):
                    axis.axhline(100 * side * one.fit.law.sigma.run, color=colour, lw=0.8, ls=":")
        axis.set(xlabel=size_label(name, shown[0].fit.points.about))
        log_axes(axis, "x")
    axes[0].set_ylabel("observed against predicted, %")
    if len(shown) > 1:
        axes[0].legend()
    caption = "Residuals; dotted: the sd that a new run's interval takes. A trend means that the form does not fit. "
    return Drawn("residuals", "Residuals by N, D and C", caption + conventions(shown[0].fit.points), figure)


def agreement(study: list[Judged]) -> Drawn | None:
    shown = [one for one in study if not one.fit.lines]
    if not shown or len({loss_label(one.fit.points.about) for one in shown}) > 1:
        return None
    figure, [axis] = new(width=5.0, height=4.6)
    for colour, one in colours(shown):
        points = one.fit.points
        predicted = one.fit.law.loss(points.x)
        axis.plot(predicted, points.loss, "o", ms=3.5, alpha=0.6, color=colour, label=label_of(points.about))
    ends = [min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])]
    axis.plot(ends, ends, color=GREY, lw=1, zorder=0)
    label = plain(loss_label(shown[0].fit.points.about))
    axis.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"predicted {label}", ylabel=f"observed {label}")
    if len(shown) > 1:
        axis.legend()
    return Drawn(
        "agreement",
        "Predicted against observed",
        "Every fitted run. " + conventions(shown[0].fit.points),
        figure,
    )


def profile(study: list[Judged]) -> Drawn | None:
    shown = [one for one in study if one.profile is not None]
    if not shown:
        return None
    figure, [axis] = new(width=5.6, height=3.4)
    for colour, one in colours(shown):
        assert one.profile is not None
        rise = one.profile.objective - one.profile.objective.min()
        allowed = one.profile.allowed - one.profile.objective.min()
        axis.plot(one.profile.values, rise / allowed, color=colour, label=label_of(one.fit.points.about))
    axis.axhline(1, color=GREY, lw=1, ls=":")
    near = [v for one in shown if one.profile for v in one.profile.near()]
    axis.set(
        xlim=(min(near), max(near)),
        ylim=(-0.1, 4),
        xlabel="E, irreducible loss",
        ylabel="rise of the objective",
    )
    if len(shown) > 1:
        axis.legend()
    level = f"{shown[0].fit.method.level:.0%}"
    caption = f"Profile likelihood of E: the lowest objective at each, over what the {level} interval allows (dotted)."
    return Drawn("profile", "How well E is known", caption, figure)
