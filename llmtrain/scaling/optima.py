"""Optima of budgets: "approach 2" (the minimum of each IsoFLOP curve) and "approach 1" (the lowest runs)."""

import contextlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain.errors import DataError
from llmtrain.scaling.bins import lowest_in_bins, undominated
from llmtrain.scaling.budgets import budgets
from llmtrain.scaling.curve import MANY_SIZES, NoMinimumError, drawn_minima, minimum, scatter
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Excluded, Points
from llmtrain.scaling.replicates import Replicates

_DRAWS = 400  # at most, of each curve
_FEWEST = 3  # budgets that a power law needs: two would leave nothing to see how well it fits


@dataclass(frozen=True)
class Optimum:
    """Of one budget; ``flat``: the parameters within 1% of its lowest loss."""

    flops: float
    n: float
    d: float
    loss: float
    flat: tuple[float, float] | None
    how: str
    runs: int


@dataclass(frozen=True)
class Optima:
    found: tuple[Optimum, ...]
    others: dict[str, tuple[Optimum, ...]]  # by other estimators, for comparison
    excluded: tuple[Excluded, ...]  # budgets
    drawn_n: Float[np.ndarray, "R b"] | None
    drawn_d: Float[np.ndarray, "R b"] | None

    def column(self, name: str) -> Float[np.ndarray, " b"]:
        return np.array([getattr(o, name) for o in self.found])


def isoflop_optima(points: Points, method: Method, known: Replicates) -> Optima:
    """The minimum of each budget's curve; ``known`` is of relative losses.

    Raises DataError where fewer than three budgets have one.
    """
    points.require(("n", "d", "c"), "form isoflop")
    number = budgets(points.x["c"])
    curves = [
        _Curve(points.x["c"][here], points.x["n"][here], points.x["d"][here], points.loss[here])
        for here in (number == b for b in range(number.max() + 1))
    ]
    first, *others = estimators(method.minimum, float(np.median([curve.sizes for curve in curves])))
    rng = np.random.default_rng(method.seed)
    kept: list[Optimum] = []
    excluded: list[Excluded] = []
    beside: dict[str, list[Optimum]] = {}
    draws: list[tuple[np.ndarray, np.ndarray]] = []
    for curve in curves:
        try:
            kept.append(curve.optimum(first))
        except NoMinimumError as reason:
            why = f"{reason} (by {first}, {curve.sizes} sizes)"
            excluded.append(Excluded(f"budget {curve.flops:.4g} FLOPs", why))
            continue
        for how in others:
            with contextlib.suppress(NoMinimumError):
                beside.setdefault(how, []).append(curve.optimum(how))
        if method.bootstrap:
            draws.append(curve.drawn(first, rng, min(method.bootstrap, _DRAWS), known.sigma or 0.0))
    if len(kept) < _FEWEST:
        reasons = "; ".join(f"{e.run}: {e.reason}" for e in excluded)
        raise DataError(
            f"{points.about.source}, series {points.about.series}: {len(kept)} of {len(curves)} budgets have a minimum "
            f"inside their sizes, and a power law needs {_FEWEST}{f' ({reasons})' if reasons else ''}: train further "
            "sizes or budgets, or fit another form"
        )
    named = {how: tuple(optima) for how, optima in beside.items()}
    drawn_n, drawn_d = (_complete([d[i] for d in draws]) for i in (0, 1))
    return Optima(tuple(kept), named, tuple(excluded), drawn_n, drawn_d)


class _Curve(NamedTuple):
    """The runs of one budget."""

    c: np.ndarray
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray

    @property
    def flops(self) -> float:
        return float(np.exp(np.log(self.c).mean()))

    @property
    def sizes(self) -> int:
        return len(np.unique(self.n))

    def optimum(self, how: str) -> Optimum:
        by_n, by_d = (minimum(np.log(x), self.loss, how) for x in (self.n, self.d))
        flat = (float(np.exp(by_n.flat[0])), float(np.exp(by_n.flat[1])))
        n, d = float(np.exp(by_n.at)), float(np.exp(by_d.at))
        return Optimum(self.flops, n, d, by_n.loss, flat, how, len(self.n))

    def drawn(
        self, how: str, rng: np.random.Generator, count: int, sigma: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """N and D of the minima of noisy copies; the noise is the replicates', or what the curve shows if more."""
        sigma = max(sigma, scatter(np.log(self.n), self.loss))
        losses = self.loss * np.exp(sigma * rng.standard_normal((count, len(self.loss))))
        n, d = (np.exp(drawn_minima(np.log(x), losses, how)[0]) for x in (self.n, self.d))
        return n, d


def estimators(asked: str, sizes: float) -> tuple[str, ...]:
    """The one that counts first: a parabola through few sizes; through many, what follows the curve.

    One for all budgets, by their median number of sizes: two would differ by their bias, which reads as a trend.
    """
    if asked != "auto":
        return (asked,)
    return ("quadratic",) if sizes < MANY_SIZES else ("akima", "robust", "local", "quadratic")


def _complete(draws: list[np.ndarray]) -> np.ndarray | None:
    """Resamples in which every budget has its minimum, [R b]."""
    if not draws:
        return None
    table = np.stack(draws, 1)
    return table[np.isfinite(table).all(1)]


def envelope_optima(points: Points, method: Method) -> Optima:
    """Finished runs that none with less compute reaches; with ``frontier_bins``, the lowest of each bin of ln C."""
    points.require(("n", "d", "c"), "form envelope")
    chosen = lowest_in_bins(points, method.frontier_bins)[0] if method.frontier_bins else undominated(points)
    if len(chosen) < _FEWEST:
        raise DataError(
            f"{points.about.source}: {len(chosen)} run is on the envelope, and a power law needs {_FEWEST}"
        )
    x, loss = points.x, points.loss
    found = tuple(
        Optimum(float(x["c"][i]), float(x["n"][i]), float(x["d"][i]), float(loss[i]), None, "envelope", 1)
        for i in chosen
    )
    return Optima(found, {}, (), None, None)
