"""How steeply the movement of each layer's output grows with width or depth, and whether that is flat."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.coordinates.check import Axis
from llmtrain.coordinates.measure import Moved


@dataclass(frozen=True)
class Curve:
    """Of one layer, or over depths of those as deep in the stack, after one number of steps."""

    parametrization: str  # given | standard
    axis: Axis
    step: int
    layer: str
    kind: str
    sizes: tuple[int, ...]
    moved: tuple[tuple[float, ...], ...]  # mean |change of the output since the start|, by size and seed

    @property
    def slope(self) -> float:
        """Of ln moved against ln size, by least squares over all seeds; infinite where nothing moved."""
        return statistics.fmean(self._slopes())

    @property
    def se(self) -> float | None:
        """Of the slope, between seeds; none where there is one, or one that did not move."""
        slopes = self._slopes()
        known = len(slopes) > 1 and all(map(math.isfinite, slopes))
        return statistics.stdev(slopes) / math.sqrt(len(slopes)) if known else None

    def _slopes(self) -> list[float]:
        x = np.log(self.sizes)
        found = []
        for seed in zip(*self.moved, strict=True):
            usable = all(math.isfinite(value) and value > 0 for value in seed)
            found.append(float(np.polyfit(x, np.log(seed), 1)[0]) if usable else math.inf)
        return found


@dataclass(frozen=True)
class Kind:
    """All layers of a kind under one parametrisation along one axis."""

    name: str
    curves: tuple[Curve, ...]

    def slope(self, step: int) -> float:
        """The mean over layers."""
        return statistics.fmean(c.slope for c in self.curves if c.step == step)

    @property
    def steepest(self) -> Curve:
        return max(self.curves, key=lambda c: abs(c.slope))

    def flat(self, tolerance: float) -> bool:
        return abs(self.steepest.slope) <= tolerance


def curves(moved: Iterable[Moved]) -> list[Curve]:
    """Over widths one a layer; over depths one for each of the least depth's, with those as deep in the other stacks.

    There, what a layer adds to the residual stream is left out: it shrinks with depth by design, and is seen in the
    stream.
    """
    moved = list(moved)
    least = min((case.size for case, _ in moved if case.axis == "depth"), default=0)
    found: dict[tuple[str, Axis, int, str, str], dict[int, list[float]]] = defaultdict(dict)
    for case, by_step in moved:
        for step, spots in by_step.items():
            for spot, value in spots.items():
                layer = spot.name if case.axis == "width" else None if spot.branch else spot.deep(least)
                if layer is not None:
                    of = found[case.parametrization, case.axis, step, layer, spot.kind]
                    of.setdefault(case.size, []).append(value)
    return [
        Curve(*key, sizes=tuple(by_size), moved=tuple(tuple(seeds) for seeds in by_size.values()))
        for key, by_size in found.items()
    ]


def kinds(found: Sequence[Curve], parametrization: str, axis: Axis) -> list[Kind]:
    mine = [c for c in found if (c.parametrization, c.axis) == (parametrization, axis)]
    names = dict.fromkeys(c.kind for c in mine)
    return [Kind(name, tuple(c for c in mine if c.kind == name)) for name in names]
