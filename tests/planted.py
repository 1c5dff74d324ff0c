"""Laws with known parameters, and runs that follow them."""

from dataclasses import replace

import numpy as np

from llmtrain.scaling import Points, planned
from llmtrain.scaling.columns import with_third
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.points import About

LAWS = {
    "chinchilla": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    "power": {"E": 1.7, "A": 60.0, "alpha": 0.09},
    "gadre": {"E": 1.5, "a": 141.0, "b": 190.0, "eta": 0.12},
    "clark": {"K": 25.0, "a": -0.12, "b": -0.15, "c": 0.006, "E_start": 1.9, "E_max": 290.0},
    "data_constrained": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35, "R": 15.4},
}


def grid(budgets: np.ndarray, sizes: int, within: float) -> dict[str, np.ndarray]:
    """Budgets times sizes around an optimum that follows Chinchilla."""
    c = np.repeat(budgets, sizes)
    n = 0.35 * (c / 6) ** 0.49 * np.tile(np.geomspace(1 / within, within, sizes), len(budgets))
    return with_third({"n": n, "c": c}, "")[0]


def points(form: str, *, noise: float = 0.0, seed: int = 0) -> Points:
    """Seventy-five runs of the planted law of a form."""
    x = grid(np.geomspace(1e17, 1e21, 5), 15, 6.0)
    i = np.arange(len(x["n"]))
    if form == "clark":
        x |= {"experts": np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512])[i % 10]}
    if form == "data_constrained":
        x |= {"unique": x["d"] / np.array([1.0, 2, 5, 12, 40])[i % 5]}
    return planted(form, LAWS[form], x, noise, seed)


def surface(law: dict[str, float]) -> Points:
    return planted("chinchilla", law, grid(np.geomspace(1e17, 1e21, 5), 15, 6.0))


def planted(
    form: str, law: dict[str, float], x: dict[str, np.ndarray], noise: float = 0.0, seed: int = 0
) -> Points:
    _, convention = with_third({key: x[key] for key in ("n", "c")}, "")
    loss = FORMS[form].predict(law, x)
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    about = About(source="planted", sha256="", score_unit="nats/token")
    return replace(planned(x, convention), loss=loss, about=about)
