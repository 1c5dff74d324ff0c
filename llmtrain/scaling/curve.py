"""The minimum of one IsoFLOP curve: loss against the logarithm of a size, at one budget."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.interpolate import Akima1DInterpolator

from llmtrain.scaling.huber import mad_sigma

Column = Float[np.ndarray, " n"]

MANY_SIZES = 7  # from so many on, a parabola through all of them is no longer the only choice
_NEAR = 5  # sizes of the local parabola
_FINE = 20_001  # points of the interpolant
_COARSE = 801  # the same for resamples
_BIWEIGHT = 4.685  # Tukey's, in sds
_FLAT = 0.01  # of the loss


@dataclass(frozen=True)
class Minimum:
    """Of a curve, in the size's logarithm; ``flat``: the sizes within 1% of the lowest loss, where they were run."""

    at: float
    loss: float
    flat: tuple[float, float]


class NoMinimumError(Exception):
    """Why a curve has none."""


def minimum(u: Column, loss: Column, how: str) -> Minimum:
    """``how``: quadratic, robust, akima or local. Raises NoMinimumError."""
    if len(np.unique(u)) < 3:
        raise NoMinimumError(f"{len(np.unique(u))} sizes, and a minimum needs 3")
    grid = np.linspace(u.min(), u.max(), _FINE)
    if how == "akima":
        values = _akima(u, loss, grid)
        best = int(values.argmin())
        if best in (0, _FINE - 1):
            raise NoMinimumError(f"the minimum is at the {'smallest' if best == 0 else 'largest'} size")
        at, least = float(grid[best]), float(values[best])
    else:
        parabola = _PARABOLAS[how](u, loss)
        at = _vertex(parabola, u)
        least = float(np.polyval(parabola, at - _middle(u)))
        if least <= 0:
            raise NoMinimumError("the parabola's lowest loss is not above 0: the sizes reach too far for one")
        values = np.polyval(parabola, grid - _middle(u))
    near = grid[values <= least * (1 + _FLAT)]
    return Minimum(at, least, (float(near[0]), float(near[-1])))


def scatter(u: Column, loss: Column) -> float:
    """Relative sd of the losses around the robust parabola, by the median: what noise the curve itself shows."""
    if len(u) < 4:
        return 0.0
    r = loss / np.polyval(_robust(u, loss), u - _middle(u)) - 1
    return mad_sigma(r, 3)


def drawn_minima(
    u: Column, losses: Float[np.ndarray, "R n"], how: str
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Places and losses of the minima of many curves on the same sizes; a place that is not inside is nan."""
    if how == "akima":
        grid = np.linspace(u.min(), u.max(), _COARSE)
        values = np.stack([_akima(u, loss, grid) for loss in losses])
        best = values.argmin(1)
        inside = (best > 0) & (best < _COARSE - 1)
        return np.where(inside, grid[best], np.nan), values[np.arange(len(values)), best]
    x = u - _middle(u)
    chosen = np.ones(len(u), bool) if how in ("quadratic", "robust") else _near(u, losses.mean(0))
    p = np.polyfit(x[chosen], losses[:, chosen].T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -p[1] / (2 * p[0])
    inside = (p[0] > 0) & (at > x.min()) & (at < x.max())
    return np.where(inside, at + _middle(u), np.nan), p[2] - p[1] ** 2 / (4 * p[0])


def _middle(u: Column) -> float:
    return float(u.mean())


def _vertex(parabola: np.ndarray, u: Column) -> float:
    if parabola[0] <= 0:
        raise NoMinimumError(f"the parabola's curvature is {parabola[0]:.3g}, not positive")
    at = float(-parabola[1] / (2 * parabola[0])) + _middle(u)
    if not u.min() < at < u.max():
        side = "below the smallest" if at <= u.min() else "above the largest"
        raise NoMinimumError(f"the minimum is {side} size")
    return at


def _quadratic(u: Column, loss: Column) -> np.ndarray:
    return np.polyfit(u - _middle(u), loss, 2)


def _local(u: Column, loss: Column) -> np.ndarray:
    chosen = _near(u, loss)
    return np.polyfit(u[chosen] - _middle(u), loss[chosen], 2)


def _robust(u: Column, loss: Column) -> np.ndarray:
    """Tukey's biweight from the local parabola on: sizes too far off for a parabola lose their weight."""
    parabola = _local(u, loss) if len(np.unique(u)) > _NEAR else _quadratic(u, loss)
    for _ in range(50):
        r = loss - np.polyval(parabola, u - _middle(u))
        sigma = max(mad_sigma(r[_near(u, loss)], 3), 1e-3 * float(loss.min()))
        weight = np.clip(1 - (r / (_BIWEIGHT * sigma)) ** 2, 0, None)
        if (weight > 0).sum() < 4:
            break
        found = np.polyfit(u - _middle(u), loss, 2, w=weight)
        done = np.allclose(found, parabola, rtol=1e-10)
        parabola = found
        if done:
            break
    return parabola


_PARABOLAS: dict[str, Callable[[Column, Column], np.ndarray]] = {
    "quadratic": _quadratic,
    "robust": _robust,
    "local": _local,
}


def _near(u: Column, loss: Column) -> np.ndarray:
    """The five sizes around the lowest, as far inside as there are."""
    sizes = np.unique(u)
    means = np.array([loss[u == size].mean() for size in sizes])
    first = int(np.clip(means.argmin() - _NEAR // 2, 0, max(0, len(sizes) - _NEAR)))
    return np.isin(u, sizes[first : first + _NEAR])


def _akima(u: Column, loss: Column, grid: np.ndarray) -> np.ndarray:
    """Of the logarithm of the mean loss of each size (Porian et al. 2024, arXiv:2406.19146)."""
    sizes, code = np.unique(u, return_inverse=True)
    means = np.bincount(code, loss) / np.bincount(code)
    return np.asarray(np.exp(Akima1DInterpolator(sizes, np.log(means))(grid)))


def values_on(u: Column, loss: Column, how: str, grid: np.ndarray) -> np.ndarray:
    """The curve whose minimum counts, on sizes inside those that were run."""
    if how == "akima":
        return _akima(u, loss, grid)
    return np.asarray(np.polyval(_PARABOLAS[how](u, loss), grid - _middle(u)))
