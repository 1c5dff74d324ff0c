"""Where a fit starts: a grid over exponents and shapes, with the coefficients solved (variable projection)."""

import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.forms.base import Bound, finite_log

_KEPT = 8
_ABSENT = 1e-4  # of the mean loss: where the best coefficient is zero or less, it starts here


def starts(
    model: Bound,
    loss: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    fixed: Mapping[str, float],
) -> Float[np.ndarray, "k p"]:
    """The best few points of the grid, no two of them neighbours; ``fixed`` holds entries of theta."""
    form = model.form
    lost = {term.coefficient for term in form.terms if fixed.get(term.coefficient, 0.0) < -100}
    terms = [term for term in form.terms if term.coefficient not in lost]
    if len(terms) == 1:
        return _log_linear(model, loss, weight, fixed, form.terms.index(terms[0]))
    names = [name for name in (*form.exponents, *form.shapes) if name not in fixed]
    theta, places = _grid(model, names)
    for name, value in fixed.items():
        theta[:, form.at(name)] = value
    cost = _project(model, theta, loss, weight, fixed)
    return theta[_apart(cost, places)]


def _grid(model: Bound, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every combination of the named parameters' values, as theta, and where each stands in the grid."""
    form = model.form
    values = [np.log(form.grid[name]) if name in form.shapes else np.array(form.grid[name]) for name in names]
    places = np.array(list(itertools.product(*(range(len(v)) for v in values))))
    theta = np.zeros((len(places), len(form.parameters)))
    for i, name in enumerate(names):
        theta[:, form.at(name)] = values[i][places[:, i]]
    return theta, places


def _project(
    model: Bound, theta: np.ndarray, loss: np.ndarray, weight: np.ndarray, fixed: Mapping[str, float]
) -> np.ndarray:
    """Fill in the best positive coefficients of each theta (least squares of f/y - 1); the squares' sum is returned."""
    form = model.form
    at = [form.at(name) for name in form.coefficients]
    free = [j for j, name in enumerate(form.coefficients) if name not in fixed]
    theta[:, [at[j] for j in free]] = 0.0
    basis = np.stack([np.exp(phi) for phi in model.terms(theta)], -1) / loss[:, None]  # [G n J]
    target = 1 - basis[..., [j for j in range(len(at)) if j not in free]].sum(-1)
    best = np.full(len(theta), np.inf)
    found = np.zeros((len(theta), len(free)))
    for size in range(1, len(free) + 1):  # as many as are positive: each set of terms in turn
        for chosen in itertools.combinations(range(len(free)), size):
            columns = basis[..., [free[j] for j in chosen]]
            weighted = columns * weight[:, None]
            gram = weighted.transpose(0, 2, 1) @ columns
            gram += 1e-13 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            c = np.linalg.solve(gram, (weighted * target[..., None]).sum(1)[..., None])[..., 0]
            cost = (weight * (target - (columns @ c[..., None])[..., 0]) ** 2).sum(-1)
            better = (c > 0).all(-1) & (cost < best)
            best[better] = cost[better]
            found[better] = 0
            found[np.ix_(better, chosen)] = c[better]
    floor = _ABSENT * float(loss.mean())
    theta[:, [at[j] for j in free]] = np.log(np.maximum(found, floor))
    return best


def _apart(cost: np.ndarray, places: np.ndarray) -> list[int]:
    chosen: list[int] = []
    for i in np.argsort(cost, kind="stable"):
        if all(np.abs(places[i] - places[j]).max() > 1 for j in chosen):
            chosen.append(int(i))
        if len(chosen) == _KEPT:
            break
    return chosen


def _log_linear(
    model: Bound, loss: np.ndarray, weight: np.ndarray, fixed: Mapping[str, float], term: int
) -> np.ndarray:
    """With one term ln f is linear in all but the shapes: least squares, for each point of the shapes' grid."""
    form = model.form
    theta, _ = _grid(model, [name for name in form.shapes if name not in fixed])
    for name, value in fixed.items():
        theta[:, form.at(name)] = value
    linear = [i for i, name in enumerate(form.parameters) if name not in fixed and name not in form.shapes]
    for row in theta:
        x = np.broadcast_to(model.slopes(row[None])[term], (1, len(loss), len(row)))[0]
        rest = (
            np.log(loss)
            - x[:, [form.at(name) for name in form.exponents if name in fixed]]
            @ row[[form.at(name) for name in form.exponents if name in fixed]]
        )
        root = np.sqrt(weight)
        row[linear] = np.linalg.lstsq(x[:, linear] * root[:, None], rest * root, rcond=None)[0]
    return theta


def fixed_theta(model: Bound, law: Mapping[str, float]) -> dict[str, float]:
    """Entries of theta from values as papers state them, where one alone decides the other."""
    form = model.form
    return {
        name: law[name] if name in form.exponents else finite_log(law[name])
        for name in form.parameters
        if name in law
    }
