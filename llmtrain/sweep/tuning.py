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
    """Least squares over all trials near the best of their corner, as parabolas in ln lr that share one curvature.

    Written out, loss = m_i + k (ln lr - c - c_N ln N_i - c_D ln D_i)^2 is linear in ln^2 lr, ln lr and its products
    with ln N and ln D, so the rule comes without a search. A seed's noise at a flat corner moves it by less than the
    vertices of each corner alone would (by a third, at 1.1% of noise). Where trials are too few for that, or do not
    curve upwards, the corners' own best rates make the rule. A slope that the corners do not determine is 0.
    """
    points = np.array([best.address for best in bests])
    middle = points.mean(0)
    centred = points - middle
    trials = [(i, math.log(lr), loss) for i, best in enumerate(bests) for lr, loss in _near_best(best)]
    rates = np.array([x for _, x, _ in trials])
    corner = np.array([i for i, _, _ in trials])
    origin = rates.mean()
    x = rates - origin
    terms = np.column_stack([x**2, x, x[:, None] * centred[corner], np.eye(len(bests))[corner]])
    if len(trials) >= terms.shape[1]:
        curvature, *slopes = np.linalg.lstsq(terms, np.array([loss for _, _, loss in trials]), rcond=None)[0][
            :4
        ]
        if curvature > 0:
            at_middle, by_n, by_tokens = (float(-slope / (2 * curvature)) for slope in slopes)
            return Rule(float(origin + at_middle - middle @ (by_n, by_tokens)), by_n, by_tokens)
    rates = np.log([best.lr for best in bests])
    # about the middle, so that of slopes which the corners do not determine the shortest solution has none
    by = np.linalg.lstsq(centred, rates - rates.mean(), rcond=None)[0]
    return Rule(float(rates.mean() - by @ middle), float(by[0]), float(by[1]))


def _near_best(best: Best) -> list[tuple[float, float]]:
    """(rate, loss) of the trials up to two steps from the lowest: further away a loss is no parabola."""
    tried = sorted((float(lr), math.inf if loss is None else loss) for lr, loss in best.tried.items())
    at = min(range(len(tried)), key=lambda i: tried[i][1])
    return [trial for trial in tried[max(0, at - 2) : at + 3] if math.isfinite(trial[1])]


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
