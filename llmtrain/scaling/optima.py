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

_DRAWS, _LEAST_DRAWS = 400, 200  # of each curve: with many resamples, and with none
_HALF = 0.5  # of the draws: a minimum that more of them lose may lie anywhere among the sizes
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
class Noise:
    """What the scatter of runs does to the optima of curves: variances of ln N, ln D and ln L of each, [b]."""

    n: Float[np.ndarray, " b"]
    d: Float[np.ndarray, " b"]
    loss: Float[np.ndarray, " b"]
    run: float  # relative sd of one run around its curve
    lost: float  # of the noisy copies of the curve that loses most, the share without a minimum inside


@dataclass(frozen=True)
class Optima:
    found: tuple[Optimum, ...]
    others: dict[str, tuple[Optimum, ...]]  # by other estimators, for comparison
    excluded: tuple[Excluded, ...]  # budgets
    points: Points  # the runs of all budgets
    kept: Points  # of those that have an optimum
    noise: Noise | None  # none where optima are runs

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
    count = min(max(method.bootstrap, _LEAST_DRAWS), _DRAWS)
    found: list[Optimum] = []
    excluded: list[Excluded] = []
    beside: dict[str, list[Optimum]] = {}
    spreads: list[_Spread] = []
    kept, of = points, number  # the runs that are left, and the budget of each
    for b, curve in enumerate(curves):
        try:
            found.append(curve.optimum(first))
        except NoMinimumError as reason:
            why = f"{reason} (by {first}, {curve.sizes} sizes)"
            name = f"budget {curve.flops:.4g} FLOPs"
            excluded.append(Excluded(name, why))
            kept, of = kept.keep(of != b, f"{name}: {why}"), of[of != b]
            continue
        for how in others:
            with contextlib.suppress(NoMinimumError):
                beside.setdefault(how, []).append(curve.optimum(how))
        spreads.append(curve.spread(first, rng, count, known.sigma or 0.0))
    if len(found) < _FEWEST:
        reasons = "; ".join(f"{e.run}: {e.reason}" for e in excluded)
        raise DataError(
            f"{points.about.source}, series {points.about.series}: {len(found)} of {len(curves)} budgets have a "
            f"minimum inside their sizes, and a power law needs {_FEWEST}{f' ({reasons})' if reasons else ''}: train "
            "further sizes or budgets, or fit another form"
        )
    named = {how: tuple(optima) for how, optima in beside.items()}
    return Optima(tuple(found), named, tuple(excluded), points, kept, _noise(spreads))


class _Spread(NamedTuple):
    """Of the minimum of one curve: variances of ln N, ln D and ln L, the sd of a run, and the share of draws lost."""

    n: float
    d: float
    loss: float
    run: float
    lost: float


def _noise(spreads: list[_Spread]) -> Noise:
    n, d, loss, run, lost = (np.array(column) for column in zip(*spreads, strict=True))
    return Noise(n, d, loss, run=float(np.sqrt((run**2).mean())), lost=float(lost.max()))


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

    def spread(self, how: str, rng: np.random.Generator, count: int, sigma: float) -> _Spread:
        """Of the minima of noisy copies; the noise is the replicates', or what the curve shows if more."""
        sigma = max(sigma, scatter(np.log(self.n), self.loss))
        losses = self.loss * np.exp(sigma * rng.standard_normal((count, len(self.loss))))
        (n, least), (d, _) = (drawn_minima(np.log(x), losses, how) for x in (self.n, self.d))
        lost = max(float((~np.isfinite(at)).mean()) for at in (n, d))
        there = np.isfinite(n)
        low = np.log(least[there]) if (least[there] > 0).all() else np.zeros(0)
        return _Spread(
            _variance(n, np.log(self.n)), _variance(d, np.log(self.d)),
            float(low.var(ddof=1)) if len(low) > 1 else sigma**2, sigma, lost,
        )  # fmt: skip


def _variance(drawn: Float[np.ndarray, " R"], sizes: Float[np.ndarray, " k"]) -> float:
    """Of drawn minima, each the logarithm of a size."""
    there = drawn[np.isfinite(drawn)]
    anywhere = float(np.ptp(sizes)) ** 2 / 12  # of what lies anywhere among the sizes
    if len(there) < _HALF * len(drawn):
        return anywhere
    return float(there.var(ddof=1))


def estimators(asked: str, sizes: float) -> tuple[str, ...]:
    """The one that counts first: a parabola through few sizes; through many, what follows the curve.

    One for all budgets, by their median number of sizes: two would differ by their bias, which reads as a trend.
    """
    if asked != "auto":
        return (asked,)
    return ("quadratic",) if sizes < MANY_SIZES else ("akima", "robust", "local", "quadratic")


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
    return Optima(found, {}, (), points, points, None)
