"""At which learning rate each width ends lowest, and by how much that moves."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.coordinates.measure import Ended

_NEAR = 5  # rates about the lowest that a parabola is fitted to


@dataclass(frozen=True)
class Basin:
    """The loss of one width by learning rate."""

    parametrization: str  # given | standard
    width: int
    rates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]  # by rate and seed; infinite where a run went wrong

    @property
    def means(self) -> list[float]:
        return [statistics.fmean(seeds) for seeds in self.losses]

    @property
    def best(self) -> float | None:
        """The vertex of a parabola in ln rate, by least squares over all seeds of the rates about the lowest.

        None where the lowest is the first or the last: then the best may lie beyond.
        """
        means = self.means
        at = min(range(len(means)), key=lambda i: means[i])
        if not 0 < at < len(means) - 1 or not math.isfinite(means[at]):
            return None
        near = sorted(range(len(means)), key=lambda i: (abs(i - at), i))[:_NEAR]
        points = [(math.log(self.rates[i]), y) for i in near for y in self.losses[i] if math.isfinite(y)]
        if len({x for x, _ in points}) < 3:
            return None  # the others went wrong, and two rates leave a parabola open
        x, y = (np.array(column) for column in zip(*points, strict=True))
        middle = math.log(self.rates[at])
        curvature, slope, _ = np.polyfit(x - middle, y, 2)
        shift = -slope / (2 * curvature) if curvature > 0 else math.inf
        lowest, highest = (math.log(self.rates[i]) - middle for i in (0, -1))
        return math.exp(middle + shift) if lowest < shift < highest else None


def basins(ended: Iterable[Ended]) -> list[Basin]:
    found: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(dict)
    for case, lr, loss in ended:
        by_rate = found[case.parametrization, case.size]
        by_rate.setdefault(lr, []).append(loss if math.isfinite(loss) else math.inf)
    return [
        Basin(*key, rates=tuple(by_rate), losses=tuple(tuple(seeds) for seeds in by_rate.values()))
        for key, by_rate in found.items()
    ]


def octaves(found: Sequence[Basin]) -> float | None:
    """How many factors of 2 lie between the lowest and the highest best rate; none where one is not inside."""
    bests = [basin.best for basin in found]
    known = [best for best in bests if best is not None]
    return math.log2(max(known) / min(known)) if known and len(known) == len(bests) else None
