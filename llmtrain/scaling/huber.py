"""Huber's loss: square inside delta, linear outside; infinite delta is least squares, a tiny one least absolutes."""

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float

Delta = float | np.ndarray  # one for all rows of residuals, or [S 1]
NORMAL_MAD = 1.4826022185056018  # of a normal sample, sd over median absolute deviation
EFFICIENT = 1.345  # delta over sd at which the fit keeps 95% of least squares' efficiency on normal noise


@no_type_check
def rho(r: Float[np.ndarray, "*S n"], delta: Delta) -> Float[np.ndarray, "*S n"]:
    """r^2/2 inside delta, delta(|r| - delta/2) outside."""
    inner = np.clip(r, -delta, delta)
    return inner * (r - 0.5 * inner)


@no_type_check
def psi(r: Float[np.ndarray, "*S n"], delta: Delta) -> Float[np.ndarray, "*S n"]:
    """The slope of ``rho``."""
    return np.clip(r, -delta, delta)


@no_type_check
def inside(r: Float[np.ndarray, "*S n"], delta: Delta) -> Bool[np.ndarray, "*S n"]:
    """Where ``rho`` is a square: its second derivative."""
    return np.abs(r) <= delta


def mad_sigma(r: Float[np.ndarray, " n"], n_parameters: int) -> float:
    """The sd of normal noise with these absolute residuals, of which a fit of p parameters makes p zero."""
    ordered = np.sort(np.abs(r))
    return NORMAL_MAD * float(np.median(ordered[min(n_parameters, len(r) - 1) :]))
