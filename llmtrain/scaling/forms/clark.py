"""ln L = ln K + a ln N + b ln Ê + c ln N ln Ê for models with E experts (Clark et al. 2022, arXiv:2202.01169).

N is what one token uses. Ê saturates: 1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max, which is E_start at one
expert and E_max at infinitely many.
"""

import numpy as np
from jaxtyping import Float

from llmtrain.scaling.forms.base import Feature, Form, Inputs, Power, Term


class Clark(Form):
    """``--fix E_start=1 --fix E_max=inf`` makes Ê the number of experts itself, the paper's bilinear law."""

    name = "clark"
    formula = "ln L = ln K + a ln N + b ln Ê + c ln N ln Ê"
    needs = ("n", "experts")
    terms = (Term("K", (Power("a", "n"), Power("b", "experts"), Power("c", "both"))),)
    shapes = ("E_start", "E_max")
    grid = {  # noqa: RUF012
        "E_start": (1.2, 2.0, 4.0),
        "E_max": (100.0, 300.0, 1000.0),
    }

    def features(self, x: Inputs, theta: Float[np.ndarray, "S p"]) -> dict[str, Feature]:
        start, most = (np.exp(-theta[:, [self.at(name)]]) for name in self.shapes)  # 1/E_start, 1/E_max
        offset = 1 / (start - most)
        shifted = x["experts"] - 1 + offset
        inverse = 1 / shifted + most
        # d ln Ê = -d(1/Ê) Ê, and d offset = offset^2 (start d ln E_start - most d ln E_max)
        by_start = (offset / shifted) ** 2 * start / inverse
        by_most = (1 - (offset / shifted) ** 2) * most / inverse
        slopes = {"E_start": by_start, "E_max": by_most}
        log_n = np.log(x["n"])
        experts = Feature(-np.log(inverse), slopes)
        both = Feature(log_n * experts.value, {name: log_n * s for name, s in slopes.items()})
        return {"n": Feature(np.broadcast_to(log_n, inverse.shape)), "experts": experts, "both": both}
