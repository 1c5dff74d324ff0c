"""The compute-optimal run at given FLOPs, with intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.frontier import has_optimum, optimum
from llmtrain.scaling.intervals import Interval, intervals
from llmtrain.scaling.law import Law
from llmtrain.scaling.regression import Line
from llmtrain.scaling.resample import Draws


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
            phis = form.log_terms(theta, {"c": np.array([flops])}, law.centre)
            return {"loss": np.asarray(sum(np.exp(phi) for phi in phis))[:, 0]}

        return Best(flops, intervals(law, draws, loss_alone, level, ratio=True)["loss"])

    def ends(theta: Float[np.ndarray, "S p"]) -> dict[str, np.ndarray]:
        found = optimum(form, theta, law.centre, law.convention, flops)
        return {"n": found.n, "d": found.d, "loss": found.loss}

    found = intervals(law, draws, ends, level, ratio=True)
    slope = slopes(law, law.theta[None], flops)
    return Best(flops, found["loss"], found["n"], found["d"], float(slope["a"][0]), float(slope["b"][0]))


def slopes(law: Law, theta: Float[np.ndarray, "S p"], flops: float) -> dict[str, np.ndarray]:
    """a = d ln N* / d ln C and b = d ln D* / d ln C, over a factor of four around ``flops``."""
    below, above = (optimum(law.form, theta, law.centre, law.convention, flops * f) for f in (0.5, 2.0))
    return {"a": np.log(above.n / below.n) / np.log(4), "b": np.log(above.d / below.d) / np.log(4)}


def best_on_lines(lines: tuple[Line, Line], law: Law, flops: float, level: float) -> Best:
    """From power laws of N* and D* and of the lowest loss, each fitted to the optima of budgets."""
    bands = law.bands({"c": np.array([flops])}, level)
    loss = Interval(float(bands.loss[0]), None, float(bands.law_lo[0]), float(bands.law_hi[0]))
    n, d = lines
    return Best(flops, loss, n.at(flops, level), d.at(flops, level), n.slope, d.slope)
