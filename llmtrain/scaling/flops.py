"""The FLOPs convention of a fit: what a token costs a model of N parameters, which ties C to N and D."""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Inexact
from numpy.polynomial.polynomial import polyder, polyval

_TRUSTED = 0.02  # relative: beyond it C/D is no function of N
_BEYOND = float(np.log(100))  # of the sizes that were run, in ln N: where a curve goes on as its tangent


@dataclass(frozen=True)
class Convention:
    """C = k(N) D with ln k a polynomial in ln N; its plain form is 6ND.

    Outside ``within`` (in ln N) it goes on as its tangent: a parabola that bends down would let k fall with N.
    """

    name: str
    coefficients: tuple[float, ...]  # of ln k, the constant first, in ln N
    scatter: float = 0.0  # largest relative difference between C/D and the polynomial
    within: tuple[float, float] | None = None  # None: everywhere

    @no_type_check  # by the tests, that is: a bisection's
    def per_token(self, n: Inexact[np.ndarray, "*S"]) -> Inexact[np.ndarray, "*S"]:
        """FLOPs; a complex N carries its derivative."""
        log_n = np.log(n)
        near = log_n.real if self.within is None else np.clip(log_n.real, *self.within)
        k, slope = (polyval(near, c) for c in (self.coefficients, polyder(self.coefficients)))
        return np.exp(k + slope * (log_n - near))  # of a complex N the rest is its imaginary part


SIX_ND = Convention("6ND", (float(np.log(6)), 1.0))


def measured(
    n: Float[np.ndarray, " n"], d: Float[np.ndarray, " n"], c: Float[np.ndarray, " n"], name: str
) -> Convention:
    """The polynomial, of degree 2 at most, through C/D of runs whose three counts are known."""
    if np.allclose(c, 6 * n * d, rtol=1e-6):
        return SIX_ND
    log_n, log_k = np.log(n), np.log(c / d)
    degree = min(2, len(np.unique(log_n.round(6))) - 1)
    found = np.polynomial.Polynomial.fit(log_n, log_k, degree).convert()
    scatter = float(np.abs(np.expm1(log_k - found(log_n))).max())
    within = (float(log_n.min()) - _BEYOND, float(log_n.max()) + _BEYOND)
    return Convention(name, tuple(float(v) for v in found.coef), scatter, within)


def is_trusted(convention: Convention) -> bool:
    return convention.scatter <= _TRUSTED
