"""How far a value is off by the choice of items: standard errors over groups of items that are not independent."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from llmtrain import philox
from llmtrain.evaluation.base import Items

_RESAMPLES = 200


def standard_error(items: Items) -> float | None:
    """Of the (weighted) mean of the items, which are independent between groups alone; none under two groups.

    Linearised: a group counts with the sum of its weighted distances from the mean (the ratio estimator of a sample of
    clusters, Cochran 1977).
    """
    weight = np.ones(len(items.value)) if items.weight is None else items.weight
    of = group_numbers(items.group)
    n_groups = int(of.max()) + 1
    if n_groups < 2:
        return None
    mean = np.sum(weight * items.value) / weight.sum()
    by_group = np.bincount(of, weights=weight * (items.value - mean))
    return float(np.sqrt((by_group**2).sum() * n_groups / (n_groups - 1)) / weight.sum())


def resampled_error(
    statistic: Callable[[Int[np.ndarray, " k"]], float], groups: Sequence[str]
) -> float | None:
    """The standard deviation of ``statistic(items)`` over resamples of whole groups; none under two groups.

    For what is no mean of its items. The resamples are the same in every call.
    """
    of = group_numbers(groups)
    members = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    if len(members) < 2:
        return None
    rng = philox.generator(0, "resampled error")
    draws = rng.integers(len(members), size=(_RESAMPLES, len(members)))
    values = [statistic(np.concatenate([members[g] for g in draw])) for draw in draws]
    return float(np.std(values, ddof=1))


def group_numbers(groups: Sequence[str]) -> Int[np.ndarray, " n"]:
    return np.unique(np.array(groups), return_inverse=True)[1]
