"""The lowest losses as compute grows: what only the best of many runs say."""

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.points import Points

_ABOVE = 0.1  # decades by which the last bin reaches over the largest run


def undominated(points: Points) -> list[int]:
    """Runs that no run with less compute reaches, in the order of compute."""
    order = np.lexsort((points.loss, points.x["c"]))
    lowest = np.minimum.accumulate(points.loss[order])
    return [int(i) for k, i in enumerate(order) if k == 0 or points.loss[i] < lowest[k - 1]]


def lowest_in_bins(points: Points, bins: int) -> tuple[list[int], Float[np.ndarray, " b"]]:
    """The run of lowest loss in each bin of equal width in ln C, and the middle of its bin; empty bins have none.

    As Cherti et al. 2023 (arXiv:2212.07143) bin the compute of contrastive models.
    """
    u = np.log10(points.x["c"])
    edges = np.linspace(u.min(), u.max() + _ABOVE, bins + 1)
    number = np.digitize(u, edges) - 1
    filled = np.unique(number)
    lowest = [int(np.flatnonzero(number == b)[points.loss[number == b].argmin()]) for b in filled]
    return lowest, 10 ** (0.5 * (edges[filled] + edges[filled + 1]))
