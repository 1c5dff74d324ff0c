"""Which runs a fit has seen: by what they are, since a file may be copied, renamed or written anew."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from llmtrain.scaling.fit import Fit
from llmtrain.scaling.points import Points

_DIGITS = ".9g"  # more than two runs' losses share, fewer than rounding takes from a derived column


def fitted_rows(found: Fit) -> dict[str, list[float]]:
    """Inputs and losses of the runs that were fitted, as they were given: a frontier's bins move C."""
    given = found.given
    fitted = set(zip(found.points.run.tolist(), found.points.loss.tolist(), strict=True))
    kept = np.array([row in fitted for row in zip(given.run.tolist(), given.loss.tolist(), strict=True)])
    return {key: column[kept].tolist() for key, column in (given.x | {"loss": given.loss}).items()}


def seen(rows: dict[str, list[float]], points: Points) -> Bool[np.ndarray, " n"]:
    """Of each run, whether one of these inputs and of this very loss was fitted, wherever it was read from."""
    columns = points.x | {"loss": points.loss}
    shared = [key for key in columns if key in rows]
    known = {_key(values) for values in zip(*(rows[key] for key in shared), strict=True)}
    return np.array([_key(row) in known for row in zip(*(columns[key] for key in shared), strict=True)])


def _key(values: Any) -> tuple[str, ...]:
    return tuple(format(float(value), _DIGITS) for value in values)
