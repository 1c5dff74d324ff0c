"""Cosines of frozen features: of all texts with all others, or of pairs; raw, or each side standardised first."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain.evaluation.features import Place
from llmtrain.evaluation.readers import Reader, Scaling, moments
from llmtrain.evaluation.tasks import Input, Pair


class Choice(NamedTuple):
    place: Place
    scaling: Scaling

    @property
    def listed(self) -> dict[str, str | int | float]:
        return {"layer": self.place.layer, "pooling": self.place.pooling, "scaling": self.scaling}


class Sides(NamedTuple):
    """Vectors of the first and of the second texts of pairs, by row; arrays or sparse matrices."""

    first: Any
    second: Any


def sides(reader: Reader, pairs: Sequence[Pair]) -> dict[Place, Sides]:
    """Of a split, at every place; the second texts are what is known."""
    first, second = (
        [Input(text) for text in side] for side in zip(*((p.first, p.second) for p in pairs), strict=True)
    )
    a, b = reader.read(first, second), reader.read(second, second)
    return {place: Sides(a[place], b[place]) for place in a}


def scaled_sides(
    dev: dict[Place, Sides], of: dict[Place, Sides], reader: Reader
) -> Iterator[tuple[Choice, Sides]]:
    """Rows of unit length under every choice; standardised ones by the mean and deviation of their side on dev."""
    for place, both in of.items():
        for scaling in reader.scalings:
            yield (
                Choice(place, scaling),
                Sides(*(_unit(_scaled(scaling, fit, x)) for fit, x in zip(dev[place], both, strict=True))),
            )


def cosines(both: Sides) -> Float[np.ndarray, "Q N"]:
    found = both.first @ both.second.T
    return found if isinstance(found, np.ndarray) else found.toarray()


def paired_cosines(both: Sides) -> Float[np.ndarray, " N"]:
    if isinstance(both.first, np.ndarray):
        return np.einsum("nd,nd->n", both.first, both.second)
    return np.asarray(both.first.multiply(both.second).sum(1)).ravel()


def _scaled(scaling: Scaling, fit: Any, x: Any) -> Any:
    if scaling == "raw":
        return x.astype(np.float64)
    mean, sd = moments(fit)
    return (x - mean) / sd


def _unit(x: Any) -> Any:
    """A text without a vector (of no known word) is left at zero, and like none."""
    if isinstance(x, np.ndarray):
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    size = np.sqrt(np.asarray(x.multiply(x).sum(1)))
    return x.multiply(1 / np.maximum(size, 1e-30)).tocsr()
