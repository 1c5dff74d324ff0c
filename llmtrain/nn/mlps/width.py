"""The inner width of an MLP, from the width of the model."""

import math


def d_ff(d_model: int, ratio: float, multiple_of: int) -> int:
    """``ratio * d_model`` rounded up to a multiple; a ratio written with few digits gives the width that was meant."""
    return multiple_of * math.ceil(round(ratio * d_model / multiple_of, 2))
