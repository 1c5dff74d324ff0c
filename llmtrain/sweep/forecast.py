"""What precision a plan buys: sweeps simulated on its cells, read by the very method that will read the real one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain import philox
from llmtrain.config import config
from llmtrain.errors import UserError
from llmtrain.scaling import Method, Points, fit
from llmtrain.scaling.fit import replace_bootstrap
from llmtrain.scaling.flops import measured
from llmtrain.scaling.points import About
from llmtrain.sweep.cells import Cell

REPEATS = 40
FAR, SHORT = 10.0, 1.5  # times beyond the largest budget, with fewer decades of compute


@config
class Prior:
    """A law believed beforehand, L = E + A N^-alpha + B D^-beta, and how runs scatter around it."""

    E: float = 1.8172
    A: float = 482.01
    alpha: float = 0.3478
    B: float = 2085.43
    beta: float = 0.3658
    seed_sd: float = 0.007  # of the logarithm of the loss, between seeds of one cell
    misfit_sd: float = 0.003  # and between cells: what the law does not say of them

    def loss(self, n: Float[np.ndarray, " n"], d: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta


class Forecast(NamedTuple):
    """Of the loss of a held-out run; relative."""

    half_width: float  # median of the interval's
    error: float  # 95% of the errors are below it
    inside: float  # share of runs inside their interval
    failed: int  # simulated sweeps, of ``REPEATS``, whose fit was refused
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"by {REPEATS} simulated sweeps: the held-out loss is predicted within {self.error:.1%} (95%), with an "
            f"interval of ±{self.half_width:.1%} that holds {self.inside:.0%} of runs"
        )


def forecast(cells: Sequence[Cell], *, at: float, method: Method, prior: Prior) -> Forecast | None:
    """Of a run of ``at`` FLOPs at the prior's best size; none where every fit was refused."""
    n, d, c = (np.array(x, dtype=float) for x in zip(*((x.n, x.tokens, x.flops) for x in cells), strict=True))
    _, cell = np.unique(np.stack([n, d]), axis=1, return_inverse=True)
    convention = measured(n, d, c, "model FLOPs")
    held = _best(prior, at, lambda sizes: at / convention.per_token(sizes))
    truth = float(prior.loss(*held)[0])
    widths, errors, inside = [], [], []
    for k in range(REPEATS):
        rng = philox.generator(0, "forecast", 0, k)
        scatter = prior.misfit_sd * rng.standard_normal(cell.max() + 1)[cell]
        loss = prior.loss(n, d) * np.exp(scatter + prior.seed_sd * rng.standard_normal(len(n)))
        observed = truth * math.exp(prior.seed_sd * rng.standard_normal())
        points = Points(
            x={"n": n, "d": d, "c": c}, loss=loss, weight=np.ones(len(n)), run=np.array([x.id for x in cells]),
            unit=np.arange(len(n)), unit_name="run", convention=convention, about=About("a simulation", ""),
        )  # fmt: skip
        try:
            law = fit(points, replace_bootstrap(method)).law
        except UserError:
            continue
        bands = law.bands({"n": held[0], "d": held[1]}, method.level)
        low, high = float(bands.run_lo[0]), float(bands.run_hi[0])
        widths.append((high - low) / (2 * float(bands.loss[0])))
        errors.append(abs(float(bands.loss[0]) / observed - 1))
        inside.append(low <= observed <= high)
    if not widths:
        return None
    return Forecast(
        float(np.median(widths)), float(np.quantile(errors, 0.95)), float(np.mean(inside)), REPEATS - len(widths),
        tuple(_warnings(c, at)),
    )  # fmt: skip


def _warnings(c: Float[np.ndarray, " n"], at: float) -> list[str]:
    decades = math.log10(c.max() / c.min())
    ratio = at / c.max()
    if ratio > FAR and decades < SHORT:
        return [
            f"nothing is promised at {ratio:.0f} times the largest budget from {decades:.1f} decades of compute: "
            f"take more budgets, or predict at most {FAR:.0f} times"
        ]
    return []


def _best(prior: Prior, flops: float, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.geomspace(1e2, 1e13, 4001)
    at = int(np.argmin(prior.loss(sizes, tokens(sizes))))
    best = sizes[at : at + 1]
    return best, tokens(best)
