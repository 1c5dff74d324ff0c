"""L = E + A N^-alpha + B D'^-beta where D' counts repeated tokens less and less.

From Muennighoff et al. 2023 (arXiv:2305.16264).
With U unique tokens and R = D/U - 1 repetitions D' = U + U R* (1 - exp(-R/R*)): an epoch is worth less than a fresh one
once R* have passed. The paper's like term for N beyond what U can use is left out.
"""

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.forms.base import Feature, Form, Inputs, Power, Term

_COARSE = (0.1, 0.2, 0.3, 0.4, 0.6, 0.9)


class DataConstrained(Form):
    name = "data_constrained"
    formula = "L = E + A N^-alpha + B D'^-beta, D' = U + U R (1 - exp((1 - D/U) / R))"
    needs = ("n", "d", "unique")
    terms = (Term("E"), Term("A", (Power("alpha", "n", -1),)), Term("B", (Power("beta", "effective", -1),)))
    shapes = ("R",)
    grid = {"alpha": _COARSE, "beta": _COARSE, "R": (2.0, 5.0, 10.0, 20.0, 50.0)}  # noqa: RUF012

    def features(self, x: Inputs, theta: Float[np.ndarray, "S p"]) -> dict[str, Feature]:
        r = np.exp(theta[:, [self.at("R")]])
        unique = np.minimum(x["unique"], x["d"])
        repeats = x["d"] / unique - 1
        kept = np.exp(-repeats / r)
        worth = 1 + r * -np.expm1(-repeats / r)
        slope = (r * -np.expm1(-repeats / r) - repeats * kept) / worth  # by ln R
        log_n = np.broadcast_to(np.log(x["n"]), worth.shape)
        return {"n": Feature(log_n), "effective": Feature(np.log(unique) + np.log(worth), {"R": slope})}
