"""What precision a plan buys: sweeps simulated on its cells, read by the very method that will read the real one."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain.config import config
from llmtrain.errors import ConfigError
from llmtrain.scaling.flops import Convention, measured
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Points, planned
from llmtrain.scaling.published import LAWS
from llmtrain.scaling.saved import read_fit
from llmtrain.scaling.simulate import simulate
from llmtrain.sweep.cells import Cell
from llmtrain.typos import did_you_mean, nearest

COUNT = 100
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

    @property
    def law(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("E", "A", "alpha", "B", "beta")}

    def loss(self, n: Float[np.ndarray, " n"], d: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta


def prior_from(source: str, prior: Prior) -> Prior:
    """``prior`` with the law of a paper, by its name, or of a fit, by its folder or file.

    How runs scatter is a fit's, too, where it has replicates. Raises ConfigError for another source or form.
    """
    if source in LAWS:
        return dataclasses.replace(prior, **LAWS[source])
    if not Path(source).exists():
        near = did_you_mean(nearest(source, LAWS), LAWS)
        raise ConfigError(
            f"--prior {source}: there is no such file or folder, nor a published law of that name: {near}"
        )
    saved = read_fit(source)
    if saved.law.form.name != "chinchilla" or saved.lines:
        raise ConfigError(
            f"--prior {source}: its form is {saved.plain['form']}; a forecast needs form chinchilla"
        )
    found = dataclasses.replace(prior, **{key: saved.law.parameters[key] for key in prior.law})
    sigma = saved.law.sigma
    if not saved.law.log or sigma.replicate is None or sigma.replicate_dof < 2:
        return found
    misfit = math.sqrt(max(0.0, sigma.residual**2 - sigma.replicate**2))
    return dataclasses.replace(found, seed_sd=sigma.replicate, misfit_sd=misfit)


class Forecast(NamedTuple):
    """Of the loss of a held-out run; relative."""

    half_width: float  # median of its interval's
    error: float  # 95% of the law's errors are below it
    inside: float  # share of runs inside their interval
    failed: int  # simulated sweeps, of ``COUNT``, that could not be fitted
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"in {COUNT} simulated sweeps the held-out law is predicted within {self.error:.1%} (95% of them), with an "
            f"interval of a run of ±{self.half_width:.1%} that holds {self.inside:.0%} of runs"
        )


def forecast(cells: Sequence[Cell], *, at: float, method: Method, prior: Prior) -> Forecast | None:
    """Of a run of ``at`` FLOPs at the prior's best size; none for another form than the prior's, or too few cells."""
    if method.form != "chinchilla" or len(cells) <= len(prior.law) - len(method.fix):
        return None
    points = _points(cells)
    best_n, best_d = _best(prior, at, points.convention)
    target = {"n": best_n, "d": best_d, "c": np.array([at])}
    found = simulate(
        points, prior.law, method, target, sigma=prior.seed_sd, misfit=prior.misfit_sd, count=COUNT
    )
    if not found.laws:
        return None
    return Forecast(
        half_width=float(np.median(found.half_width)),
        error=float(np.quantile(np.abs(found.predicted / found.truth - 1), 0.95)),
        inside=float(found.in_run.mean()),
        failed=found.failed,
        warnings=tuple(_warnings(points.x["c"], at)),
    )


def _points(cells: Sequence[Cell]) -> Points:
    n, d, c = (np.array(x, dtype=float) for x in zip(*((x.n, x.tokens, x.flops) for x in cells), strict=True))
    return planned({"n": n, "d": d, "c": c}, measured(n, d, c, "flops_model"))


def _warnings(c: Float[np.ndarray, " n"], at: float) -> list[str]:
    decades = math.log10(c.max() / c.min())
    ratio = at / c.max()
    if ratio > FAR and decades < SHORT:
        return [
            f"nothing is promised at {ratio:.0f} times the largest budget from {decades:.1f} decades of compute: "
            f"take more budgets, or predict at most {FAR:.0f} times"
        ]
    return []


def _best(prior: Prior, flops: float, convention: Convention) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.geomspace(1e2, 1e13, 4001)
    tokens = flops / convention.per_token(sizes)
    at = int(np.argmin(prior.loss(sizes, tokens)))
    return sizes[at : at + 1], tokens[at : at + 1]
