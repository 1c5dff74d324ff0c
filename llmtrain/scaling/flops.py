"""The FLOPs convention of a fit: what a token costs a model of N parameters, which ties C to N and D."""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Inexact

_TRUSTED = 0.02  # relative: beyond it C/D is no function of N


@dataclass(frozen=True)
class Convention:
    """C = k(N) D with ln k a polynomial in ln N; its plain form is 6ND."""

    name: str
    coefficients: tuple[float, ...]  # of ln k, the constant first, in ln N
    scatter: float = 0.0  # largest relative difference between C/D and the polynomial

    @no_type_check  # by the tests, that is: a bisection's
    def per_token(self, n: Inexact[np.ndarray, "*S"]) -> Inexact[np.ndarray, "*S"]:
        """FLOPs; a complex N carries its derivative."""
        return np.exp(np.polynomial.polynomial.polyval(np.log(n), self.coefficients))

    def slope(self, n: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
        """d ln k / d ln N."""
        derived = np.polynomial.polynomial.polyder(self.coefficients)
        return np.polynomial.polynomial.polyval(np.log(n), derived)

    @property
    def constant_slope(self) -> bool:
        return len(self.coefficients) <= 2


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
    return Convention(name, tuple(float(v) for v in found.coef), scatter)


def is_trusted(convention: Convention) -> bool:
    return convention.scatter <= _TRUSTED
