"""The compute-optimal run at given FLOPs, with intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from llmtrain.scaling.frontier import has_optimum, optimum
from llmtrain.scaling.intervals import STEP, Interval, delta_interval, intervals
from llmtrain.scaling.law import Law
from llmtrain.scaling.regression import Line
from llmtrain.scaling.resample import NO_DRAWS, Draws


@dataclass(frozen=True)
class Best:
    """N and D are missing where the form does not set one against the other."""

    flops: float
    loss: Interval
    n: Interval | None = None
    d: Interval | None = None
    a: float | None = None  # d ln N* / d ln C there
    b: float | None = None  # d ln D* / d ln C


def best_at(law: Law, draws: Draws, flops: float, level: float) -> Best:
    form = law.form
    if not has_optimum(form):  # a law of compute alone

        def loss_alone(theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
            return {"loss": lowest_loss(law, theta, np.full(len(theta), flops))}

        return Best(flops, intervals(law, draws, loss_alone, level, ratio=True)["loss"])

    def ends(theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
        found = optimum(form, theta, law.centre, law.convention, flops)
        return {"n": found.n, "d": found.d, "loss": found.loss}

    found = intervals(law, draws, ends, level, ratio=True)
    slope = slopes(law, law.theta[None], flops)
    return Best(flops, found["loss"], found["n"], found["d"], float(slope["a"][0]), float(slope["b"][0]))


def best_without_intervals(law: Law, flops: float) -> Best:
    """The optimum alone; N and D stay out."""
    loss = float(lowest_loss(law, law.theta[None], np.array([flops]))[0])
    a = float(slopes(law, law.theta[None], flops)["a"][0]) if has_optimum(law.form) else None
    return Best(flops, Interval(loss, None, None, None), a=a)


def lowest_loss(
    law: Law, theta: Float[np.ndarray, "S p"], flops: Float[np.ndarray, " S"]
) -> Float[np.ndarray, " S"]:
    """L*(C), each theta at its own C."""
    if has_optimum(law.form):
        return optimum(law.form, theta, law.centre, law.convention, flops).loss
    phis = law.form.log_terms(theta, {"c": flops[:, None]}, law.centre)
    return np.asarray(sum(np.exp(phi) for phi in phis))[:, 0]


def best_along(law: Law, flops: Float[np.ndarray, " k"], level: float) -> list[Best]:
    """The same at many budgets at once, by the delta method, whatever resamples there are; without slopes."""
    if not has_optimum(law.form):
        return [best_at(law, NO_DRAWS, float(c), level) for c in flops]
    steps = STEP * np.eye(len(law.theta))
    thetas = np.concatenate([law.theta[None], law.theta + steps, law.theta - steps])
    at = np.repeat(flops, len(thetas))
    found = optimum(law.form, np.tile(thetas, (len(flops), 1)), law.centre, law.convention, at)
    columns = {name: getattr(found, name).reshape(len(flops), -1) for name in ("n", "d", "loss")}
    t, p = float(stdtrit(law.dof, 0.5 + level / 2)), len(law.theta)

    def interval(i: int, name: str) -> Interval:
        value, *moved = columns[name][i]
        return delta_interval(law, float(value), np.array(moved[:p]), np.array(moved[p:]), t)

    return [
        Best(float(c), interval(i, "loss"), interval(i, "n"), interval(i, "d")) for i, c in enumerate(flops)
    ]


def slopes(law: Law, theta: Float[np.ndarray, "S p"], flops: float) -> dict[str, np.ndarray]:
    """a = d ln N* / d ln C and b = d ln D* / d ln C, over a factor of four around ``flops``."""
    below, above = (optimum(law.form, theta, law.centre, law.convention, flops * f) for f in (0.5, 2.0))
    return {"a": np.log(above.n / below.n) / np.log(4), "b": np.log(above.d / below.d) / np.log(4)}


def best_on_lines(lines: tuple[Line, Line], law: Law, draws: Draws, flops: float, level: float) -> Best:
    """From power laws of N* and D* and of the lowest loss, each fitted to the optima of budgets."""
    bands = law.bands({"c": np.array([flops])}, level)
    ends = (None, None) if draws.withheld else (float(bands.law_lo[0]), float(bands.law_hi[0]))
    loss = Interval(float(bands.loss[0]), None, *ends)
    n, d = lines
    return Best(flops, loss, n.at(flops, level), d.at(flops, level), n.slope, d.slope)
