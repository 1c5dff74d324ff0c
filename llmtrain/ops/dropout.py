"""Dropout whose masks have addresses, so that neither ranks, nor order, nor recomputation changes them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # splitmix64's constants, as int64
_BITS = 24


def dropout(
    x: Float[Tensor, "B T D"], p: float, key: Int[Tensor, " B"], place: int
) -> Float[Tensor, "B T D"]:
    """``x`` with a share ``p`` of its elements 0 and the others divided by 1 - p (Srivastava et al. 2014).

    An element's fate is a hash (splitmix64's finaliser, Steele et al. 2014) of its row's ``key``, of ``place``, which
    tells the layers of a model apart, and of where it stands in the row.
    """
    at = torch.arange(x.shape[1] * x.shape[2], device=x.device).view(x.shape[1:])
    state = _mixed(key + _wrapped(place * _ODD[0]))[:, None, None] + at * _ODD[0]
    kept = (_mixed(state) >> (64 - _BITS)) & (2**_BITS - 1) >= round(p * 2**_BITS)
    return x * kept.to(x.dtype) / (1 - p)


def _wrapped(n: int) -> int:
    return (n + 2**63) % 2**64 - 2**63


def _mixed(z: Int[Tensor, "*S"]) -> Int[Tensor, "*S"]:
    """Every bit of the input flips about half of the bits of the output; int64 wraps, and shifts are made logical."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _ODD[1]
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _ODD[2]
    return z ^ ((z >> 31) & (2**33 - 1))
