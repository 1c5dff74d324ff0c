"""Optima of budgets: "approach 2" (the minimum of each IsoFLOP curve) and "approach 1" (the lowest runs)."""

from dataclasses import dataclass

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
_FEWEST = 2  # budgets that a power law needs


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
    """Raises DataError where fewer than two budgets have a minimum."""
    points.require(("n", "d", "c"), "form isoflop")
    number = budgets(points.x["c"])
    found: dict[str, list[Optimum]] = {}
    excluded: list[Excluded] = []
    draws: list[tuple[np.ndarray, np.ndarray]] = []
    sizes = [len(np.unique(points.x["n"][number == b])) for b in range(number.max() + 1)]
    first, *others = estimators(method.minimum, float(np.median(sizes)))
    rng = np.random.default_rng(method.seed)
    for b in range(number.max() + 1):
        here = number == b
        c, n, d, loss = points.x["c"][here], points.x["n"][here], points.x["d"][here], points.loss[here]
        flops = float(np.exp(np.log(c).mean()))
        try:
            found.setdefault("", []).append(_optimum(flops, n, d, loss, first))
        except NoMinimumError as reason:
            excluded.append(Excluded(f"budget {flops:.4g} FLOPs", f"{reason} (by {first}, {sizes[b]} sizes)"))
            continue
        for how in others:
            try:
                found.setdefault(how, []).append(_optimum(flops, n, d, loss, how))
            except NoMinimumError:
                continue
        if method.bootstrap:
            sigma = max(scatter(np.log(n), loss), known.sigma or 0.0)
            noise = np.exp(sigma * rng.standard_normal((min(method.bootstrap, _DRAWS), len(loss))))
            draws.append(tuple(drawn_minima(np.log(x), loss * noise, first)[0] for x in (n, d)))  # type: ignore[arg-type]
    kept = found.pop("", [])
    if len(kept) < _FEWEST:
        why = "; ".join(f"{e.run}: {e.reason}" for e in excluded)
        raise DataError(
            f"{points.about.source}: {len(kept)} of {number.max() + 1} budgets have a minimum, and a power law "
            f"needs {_FEWEST} ({why})"
        )
    return Optima(
        tuple(kept),
        {how: tuple(optima) for how, optima in found.items()},
        tuple(excluded),
        *(_complete([np.exp(d[i]) for d in draws]) for i in (0, 1)),
    )


def estimators(asked: str, sizes: float) -> tuple[str, ...]:
    """The one that counts first: a parabola through few sizes; through many, what follows the curve.

    One for all budgets, by their median number of sizes: two would differ by their bias, which reads as a trend.
    """
    if asked != "auto":
        return (asked,)
    return ("quadratic",) if sizes < MANY_SIZES else ("akima", "robust", "local", "quadratic")


def _optimum(flops: float, n: np.ndarray, d: np.ndarray, loss: np.ndarray, how: str) -> Optimum:
    by_n, by_d = minimum(np.log(n), loss, how), minimum(np.log(d), loss, how)
    flat = (float(np.exp(by_n.flat[0])), float(np.exp(by_n.flat[1])))
    return Optimum(flops, float(np.exp(by_n.at)), float(np.exp(by_d.at)), by_n.loss, flat, how, len(n))


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
