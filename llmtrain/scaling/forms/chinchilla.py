"""L = E + A N^-alpha + B D^-beta, "approach 3" of Hoffmann et al. 2022 (arXiv:2203.15556)."""

from llmtrain.scaling.forms.base import Form, Power, Term
from llmtrain.scaling.forms.grids import EXPONENTS


class Chinchilla(Form):
    name = "chinchilla"
    formula = "L = E + A N^-alpha + B D^-beta"
    needs = ("n", "d")
    terms = (Term("E"), Term("A", (Power("alpha", "n", -1),)), Term("B", (Power("beta", "d", -1),)))
    grid = {"alpha": EXPONENTS, "beta": EXPONENTS}  # noqa: RUF012
