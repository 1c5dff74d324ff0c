"""The compute-optimal run under a law: the N, and with it D, of the lowest loss at given FLOPs, found numerically."""

import dataclasses
from typing import no_type_check

import numpy as np
from jaxtyping import Complex, Float

from llmtrain.scaling.flops import Convention
from llmtrain.scaling.forms.base import Centre, Form

_STEP = 1e-30  # of the complex step: derivatives exact to rounding
_HALVINGS = 12  # then Newton's steps, from within a thirtieth
_POLISHES = 4
_APART = 1e-4  # of the slopes that tell how the slope bends
_WIDEST = 60.0  # in ln N


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Of each theta: [S] each."""

    n: Float[np.ndarray, " S"]
    d: Float[np.ndarray, " S"]
    loss: Float[np.ndarray, " S"]


def has_optimum(form: Form) -> bool:
    """Whether the law sets parameters against data at all."""
    return {"n", "d"} <= set(form.needs)


def knows_flops(form: Form) -> bool:
    """Whether the law has a lowest loss at given FLOPs: by its optimum, or of compute alone."""
    return has_optimum(form) or form.needs == ("c",)


def optimum(
    form: Form,
    theta: Float[np.ndarray, "S p"],
    centre: Centre,
    convention: Convention,
    flops: float | Float[np.ndarray, " S"],
    *,
    unique: float = np.inf,
) -> Frontier:
    """Where d loss / d ln N at constant C = k(N) D rises through 0, which it does once; nan where it does not.

    ``unique`` tokens bound what counts in full, for a form that cares.
    """

    c = np.broadcast_to(np.asarray(flops, dtype=float), len(theta))[:, None]

    @no_type_check
    def loss(log_n: np.ndarray) -> Complex[np.ndarray, " S"]:
        n = np.exp(log_n)[:, None]
        d = c / convention.per_token(n)
        x = {"n": n, "d": d, "c": c + 0 * n, "unique": np.minimum(d, unique)}
        with np.errstate(over="ignore"):
            return np.asarray(sum(np.exp(phi) for phi in form.log_terms(theta, x, centre)))[:, 0].astype(
                complex
            )

    @no_type_check
    def slope(log_n: np.ndarray) -> Float[np.ndarray, " S"]:
        return loss(log_n + 1j * _STEP).imag

    middle = 0.5 * np.log(c[:, 0] / 6)
    low, high = middle - _WIDEST, middle + _WIDEST
    inside = (slope(low) < 0) & (slope(high) > 0)
    for _ in range(_HALVINGS):
        centre_n = 0.5 * (low + high)
        rising = slope(centre_n) > 0
        low, high = np.where(rising, low, centre_n), np.where(rising, centre_n, high)
    log_n = 0.5 * (low + high)
    for _ in range(_POLISHES):
        bend = (slope(log_n + _APART) - slope(log_n - _APART)) / (2 * _APART)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_n = np.clip(log_n - slope(log_n) / bend, low, high)
    log_n = np.where(inside, log_n, np.nan)
    n = np.exp(log_n)
    return Frontier(n, c[:, 0] / convention.per_token(n), loss(log_n).real)
