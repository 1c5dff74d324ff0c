"""Which learning rates are tried, when a corner has enough of them, and the rule that all cells take theirs from."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llmtrain.config import config
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.settings import Tuning

Tried = Mapping[float, float]  # loss by learning rate; infinite where the run diverged


@config
class Best:
    """The best rate at one corner (N, D) of the grid."""

    n: int
    tokens: int
    lr: float
    inside: bool  # between rates that were tried; else the best is the edge, and may lie beyond it
    tried: dict[str, float | None]  # loss by rate; none: diverged

    @property
    def address(self) -> tuple[float, float]:
        return math.log(self.n), math.log(self.tokens)


class Rule(NamedTuple):
    """ln lr = constant + by_n ln N + by_tokens ln D."""

    constant: float
    by_n: float
    by_tokens: float

    def lr(self, n: int, tokens: int) -> float:
        return math.exp(self.constant + self.by_n * math.log(n) + self.by_tokens * math.log(tokens))


def corners(cells: Sequence[Cell], number: int) -> list[Cell]:
    """Of the cells of one seed, those at the ends of ln N and ln D; each once.

    With two, the smallest size at its shortest and its longest: for a parametrisation that carries rates over widths.
    """
    first = min(c.seed for c in cells)
    found = [c for c in cells if c.seed == first]
    if number == 2:
        least = min(c.n for c in found)
        found = [c for c in found if c.n == least]
        ends = [min(found, key=lambda c: c.tokens), max(found, key=lambda c: c.tokens)]
    else:
        n, d = _scaled([c.n for c in found]), _scaled([c.tokens for c in found])
        ends = [_furthest(found, n, d, towards) for towards in ((-1, -1), (-1, 1), (1, -1), (1, 1))]
    return list({cell.id: cell for cell in ends}.values())


def next_rates(tried: Tried, tuning: Tuning) -> list[float]:
    """What to try next at a corner; nothing once the best is inside, or ``widen`` further ones were not enough."""
    if not tried:
        middle = tuning.rates // 2
        return [tuning.first * tuning.factor ** (k - middle) for k in range(tuning.rates)]
    rates = sorted(tried)
    if tuning.rates == 1 or len(rates) >= tuning.rates + tuning.widen:
        return []
    at = min(range(len(rates)), key=lambda i: (tried[rates[i]], rates[i]))
    if at == 0:
        return [rates[0] / tuning.factor]
    return [rates[-1] * tuning.factor] if at == len(rates) - 1 else []


def at_rate(corner: Cell, lr: float) -> Cell:
    """A trial of ``lr`` at the size and length of a corner."""
    return dataclasses.replace(corner, id=f"{corner.id}-lr{lr:.4g}", role=Role.TUNE, lr=lr)


def best_of(cell: Cell, tried: Tried) -> Best:
    """The vertex of the parabola through the best rate and its neighbours; the best rate itself at an edge."""
    rates = sorted(tried)
    at = min(range(len(rates)), key=lambda i: (tried[rates[i]], rates[i]))
    inside = 0 < at < len(rates) - 1
    lr = rates[at]
    near = rates[at - 1 : at + 2]
    if inside and all(math.isfinite(tried[r]) for r in near):
        lr = math.exp(_vertex([math.log(r) for r in near], [tried[r] for r in near]))
    kept = {f"{r:.6g}": tried[r] if math.isfinite(tried[r]) else None for r in rates}
    return Best(n=cell.n, tokens=cell.tokens, lr=lr, inside=inside or len(rates) == 1, tried=kept)


def rule_of(bests: Sequence[Best]) -> Rule:
    """Least squares in logarithms, of the slopes that the corners determine; the others are 0."""
    points = np.array([best.address for best in bests])
    middle, rates = points.mean(0), np.log([best.lr for best in bests])
    # about the middle, so that of slopes which the corners do not determine the shortest solution has none
    slopes = np.linalg.lstsq(points - middle, rates - rates.mean(), rcond=None)[0]
    return Rule(float(rates.mean() - slopes @ middle), float(slopes[0]), float(slopes[1]))


def _scaled(values: Sequence[int]) -> list[float]:
    """Logarithms between 0 and 1."""
    low, high = math.log(min(values)), math.log(max(values))
    return [(math.log(v) - low) / (high - low) if high > low else 0.0 for v in values]


def _furthest(
    cells: Sequence[Cell], n: Sequence[float], d: Sequence[float], towards: tuple[int, int]
) -> Cell:
    return cells[max(range(len(cells)), key=lambda i: towards[0] * n[i] + towards[1] * d[i])]


def _vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the parabola through three points whose middle one is the lowest: between the outer two."""
    (a, b, c), (fa, fb, fc) = x, y
    numerator = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    denominator = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    return b - numerator / (2 * denominator) if denominator else b
