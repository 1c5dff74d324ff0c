"""L = E + (a M^eta + b M^-eta) C^-eta with M = D/N tokens a parameter (Gadre et al. 2024, arXiv:2403.08540).

One exponent for compute at any M: what trains past the compute-optimal M moves the coefficient alone.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.forms.base import Feature, Form, Inputs, Power, Term
from llmtrain.scaling.forms.grids import EXPONENTS


class Gadre(Form):
    name = "gadre"
    formula = "L = E + (a M^eta + b M^-eta) C^-eta, M = D/N"
    needs = ("n", "d", "c")
    terms = (
        Term("E"),
        Term("a", (Power("eta", "m"), Power("eta", "c", -1))),
        Term("b", (Power("eta", "m", -1), Power("eta", "c", -1))),
    )
    grid = {"eta": EXPONENTS}  # noqa: RUF012

    @no_type_check
    def features(self, x: Inputs, theta: Float[np.ndarray, "S p"]) -> dict[str, Feature]:
        return {"m": Feature(np.log(x["d"] / x["n"])), "c": Feature(np.log(x["c"]))}
