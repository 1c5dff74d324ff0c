"""Whether points determine a law at all: a pseudoinverse drops what they leave open, and the interval is narrow."""

import numpy as np
from jaxtyping import Float

from llmtrain.errors import NumbersError
from llmtrain.scaling.estimate import Problem
from llmtrain.scaling.forms.base import Inputs

NO_SLOPE = (
    1e-6  # of a parameter's slope against the largest: the points say nothing of it (fixed, or at a bound)
)
_OPEN = 1e-7  # of the scaled information, least eigenvalue over largest: real sweeps have 1e-6 and more
_ON_A_LINE = (
    0.01  # sd of ln N and ln D across the line through them: sizes rounded to whole layers scatter so
)


def require_determined(problem: Problem, information: Float[np.ndarray, "p p"]) -> None:
    """Raises NumbersError for an information matrix that is singular to the fit, or runs that lie on one line."""
    if (free := _free_of_both(problem)) and (off := off_line(problem.model.x)) < _ON_A_LINE:
        raise NumbersError(
            f"form {problem.form.name}: ln N and ln D lie on one line (sd across it {off:.2g}), which cannot tell "
            f"{' from '.join(free)}; add runs of other D/N, fix an exponent, or take --form power"
        )
    scale = np.sqrt(np.diag(information))
    there = scale > NO_SLOPE * scale.max()
    values = np.linalg.eigvalsh(information[np.ix_(there, there)] / np.outer(scale[there], scale[there]))
    ratio = float(values[0] / values[-1])
    if not ratio > _OPEN:
        names = ", ".join(np.array(problem.form.parameters)[there])
        raise NumbersError(
            f"form {problem.form.name}: the points leave a combination of {names} open (information's eigenvalues "
            f"{max(ratio, 0.0):.2g} to 1, below {_OPEN:g}); add runs of other N and D, fix a parameter, or take "
            "another form"
        )


def off_line(x: Inputs) -> float:
    """Sd of ln N and ln D across the line that fits them best; infinite where the form does not have both."""
    if not {"n", "d"} <= set(x):
        return np.inf
    logs = np.stack([np.log(x["n"]), np.log(x["d"])])
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(np.cov(logs, bias=True))[0])))


def _free_of_both(problem: Problem) -> list[str]:
    """The exponents, where more than one is fitted: one alone may be told along a line too."""
    free = [name for name in problem.form.exponents if name not in problem.fixed]
    return free if len(free) > 1 else []
