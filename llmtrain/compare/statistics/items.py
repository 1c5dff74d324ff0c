"""How values would differ on other items of the same kind: whole groups resampled, the same for every model.

A group is what items share: a document, or the paradigm of a minimal pair.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llmtrain.compare.statistics.estimate import Part
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items

_DRAWS = 2000
_CHUNK = 200  # of draws at once


def covariance_over_groups(
    models: Sequence[Items], seed: int = 0
) -> tuple[Float[np.ndarray, "M M"] | None, int]:
    """Of the values of these models, by a bootstrap of the groups; and how many groups there are.

    One group says nothing of others: then there is no covariance.
    """
    first = models[0]
    for other in models[1:]:
        if other.id != first.id or other.group != first.group:
            raise DataError("models were scored on different items, or on the same in another order")
    names, code = np.unique(np.array(first.group), return_inverse=True)
    if len(names) < 2:
        return None, len(names)
    sums = [_sums(one, code, len(names)) for one in models]
    top, bottom = (np.stack([one[part] for one in sums]) for part in (0, 1))  # M G
    values = _resampled(top, bottom, np.random.default_rng(seed))
    # a bootstrap's variance is (G - 1) / G of what it estimates
    return np.atleast_2d(np.cov(values, rowvar=False)) * len(names) / (len(names) - 1), len(names)


def _sums(one: Items, code: Int[np.ndarray, " n"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """What each group adds to the numerator and to the denominator of the value."""
    weight = np.ones(len(one.value)) if one.weight is None else one.weight
    return np.bincount(code, weight * one.value, count), np.bincount(code, weight, count)


def _resampled(
    top: Float[np.ndarray, "M G"], bottom: Float[np.ndarray, "M G"], rng: np.random.Generator
) -> Float[np.ndarray, "draws M"]:
    groups = top.shape[1]
    drawn = []
    for _ in range(_DRAWS // _CHUNK):
        counts = rng.multinomial(groups, np.full(groups, 1 / groups), _CHUNK).astype(float)
        drawn.append((counts @ top.T) / (counts @ bottom.T))
    return np.concatenate(drawn)


class Shared(NamedTuple):
    """The covariance of two means over seeds that comes of their items."""

    lasting: float  # what would stay with endless seeds
    total: float  # with what these seeds do to single items


def shared(block: Float[np.ndarray, "K L"], *, same: bool) -> Shared:
    """From the covariances of the seeds of two series, or of one series (``same``).

    Within a series, pairs of different seeds alone tell what lasts.
    """
    total = float(block.mean())
    if same and len(block) > 1:
        return Shared(float(block[~np.eye(len(block), dtype=bool)].mean()), total)
    return Shared(total, total)


def item_part(own: Shared, groups: int, seeds: int) -> Part:
    """The variance of an estimate that comes of its items, beside that of seeds.

    What seeds do to single items is in the scatter of seeds already: only what lasts is added. That is a difference
    of two estimates, and so less certain than ``groups`` alone would make it.
    """
    passing = max(0.0, own.total - own.lasting)
    uncertainty = own.total**2 + (passing**2 / (2 * (seeds - 1)) if seeds > 1 else 0.0)
    lasting = min(max(0.0, own.lasting), own.total)  # never more but for rounding
    return Part(lasting, groups - 1, uncertainty / (groups - 1))
