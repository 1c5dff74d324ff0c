"""L = E + A C^-alpha: loss against compute alone, with an irreducible part (Henighan et al. 2020, arXiv:2010.14701)."""

from llmtrain.scaling.forms.base import Form, Power, Term
from llmtrain.scaling.forms.grids import EXPONENTS


class PowerLaw(Form):
    """``--fix E=0`` makes it a plain power law, which any positive quantity may follow, rising too."""

    name = "power"
    formula = "L = E + A C^-alpha"
    needs = ("c",)
    terms = (Term("E"), Term("A", (Power("alpha", "c", -1),)))
    grid = {"alpha": EXPONENTS}  # noqa: RUF012
