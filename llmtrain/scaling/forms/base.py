"""What a scaling law is here: a sum of terms, each a coefficient times powers of what a run was given.

Every law is f = sum_j exp(phi_j) with phi_j linear in ln coefficient and in exponents. ``theta`` holds, in the order of
``parameters``: ln of each coefficient (at the centre of the points, which keeps it from mirroring the exponents), the
exponents as they are, and ln of each shape (a parameter inside a feature).
"""

import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Inexact

from llmtrain.errors import ConfigError
from llmtrain.scaling.newton import Model
from llmtrain.typos import did_you_mean, nearest

Inputs = Mapping[str, np.ndarray]  # of each run: n, d, c, ... by name, [n] each
Centre = Mapping[str, float]  # of each feature

_ENDLESS = 1e3


class Power(NamedTuple):
    exponent: str
    feature: str  # a logarithm
    sign: int = 1


class Term(NamedTuple):
    coefficient: str
    powers: tuple[Power, ...] = ()


class Feature(NamedTuple):
    """The logarithm of what is raised to a power; with shapes it and its slopes are by problem, [S n]."""

    value: np.ndarray
    slopes: dict[str, np.ndarray] = {}  # noqa: RUF012  never written to


class Form:
    name: ClassVar[str]
    formula: ClassVar[str]  # for people
    needs: ClassVar[tuple[str, ...]]  # inputs
    terms: ClassVar[tuple[Term, ...]]
    shapes: ClassVar[tuple[str, ...]] = ()
    grid: ClassVar[dict[str, tuple[float, ...]]]  # of exponents and shapes: where starts are looked for

    @functools.cached_property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(term.coefficient for term in self.terms)

    @functools.cached_property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(power.exponent for term in self.terms for power in term.powers))

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        return (*self.coefficients, *self.exponents, *self.shapes)

    def at(self, name: str) -> int:
        """Where a parameter is in ``theta``."""
        if name not in self.parameters:
            said = did_you_mean(nearest(name, self.parameters), self.parameters)
            raise ConfigError(f"form {self.name} has no parameter {name!r}: {said}")
        return self.parameters.index(name)

    @no_type_check
    def features(self, x: Inputs, theta: Float[np.ndarray, "S p"]) -> dict[str, Feature]:
        """Logarithms of the inputs; a form with others of its own overrides this."""
        return {key: Feature(np.log(x[key])) for key in self.needs}

    def centre(self, x: Inputs) -> dict[str, float]:
        """The mean of each feature; of one with shapes, at the middle of their grid."""
        middle = np.zeros((1, len(self.parameters)))
        for shape in self.shapes:
            values = self.grid[shape]
            middle[0, self.at(shape)] = np.log(values[len(values) // 2])
        return {key: float(f.value.mean()) for key, f in self.features(x, middle).items()}

    @no_type_check  # by the tests, that is: a bisection's
    def log_terms(
        self, theta: Float[np.ndarray, "S p"], x: Inputs, centre: Centre
    ) -> list[Inexact[np.ndarray, "S n"]]:
        """phi of each term, for every theta at every x; with x of [S 1], for every theta at its own.

        An x may be complex: its small imaginary part then carries the derivative.
        """
        features = self.features(x, theta)
        found = []
        for term in self.terms:
            phi: np.ndarray = theta[:, [self.at(term.coefficient)]] + 0 * next(iter(features.values())).value
            for p in term.powers:
                shifted = features[p.feature].value - centre[p.feature]
                phi = phi + p.sign * theta[:, [self.at(p.exponent)]] * shifted
            found.append(phi)
        return found

    def on(self, x: Inputs, centre: Centre) -> "Bound":
        return Bound(self, x, centre)

    def law(self, theta: Float[np.ndarray, "*S p"], centre: Centre) -> dict[str, np.ndarray]:
        """Each parameter as papers state it."""
        found: dict[str, np.ndarray] = {}
        with np.errstate(over="ignore"):  # of a resample that went astray
            for term in self.terms:
                shift = sum(
                    (p.sign * theta[..., self.at(p.exponent)] * centre[p.feature] for p in term.powers), 0.0
                )
                found[term.coefficient] = np.exp(theta[..., self.at(term.coefficient)] - shift)
            found |= {name: theta[..., self.at(name)] for name in self.exponents}
            found |= {name: np.exp(theta[..., self.at(name)]) for name in self.shapes}
        return {name: np.asarray(value) for name, value in found.items()}

    def theta(self, law: Mapping[str, float], centre: Centre) -> Float[np.ndarray, " p"]:
        """The inverse of ``law``."""
        found = np.zeros(len(self.parameters))
        for term in self.terms:
            shift = sum(p.sign * law[p.exponent] * centre[p.feature] for p in term.powers)
            found[self.at(term.coefficient)] = finite_log(law[term.coefficient]) + shift
        for name in self.exponents:
            found[self.at(name)] = law[name]
        for name in self.shapes:
            found[self.at(name)] = finite_log(law[name])
        return found

    def predict(self, law: Mapping[str, float], x: Inputs) -> Float[np.ndarray, " n"]:
        """The loss that a law as papers state it gives."""
        centre = self.centre(x)
        phis = self.on(x, centre).terms(self.theta(law, centre)[None])
        return np.asarray(sum(np.exp(phi) for phi in phis))[0]


def finite_log(value: float) -> float:
    """ln, with numbers for 0 and infinity whose exponentials are 0 and infinity again."""
    return float(np.clip(np.log(value), -_ENDLESS, _ENDLESS)) if value > 0 else -_ENDLESS


@no_type_check  # by the tests, that is: an inner loop's
class Bound(Model):
    """A form on some runs: phi_j and its slopes."""

    def __init__(self, form: Form, x: Inputs, centre: Centre) -> None:
        self.form, self.x, self.centre = form, x, centre
        self.n = len(next(iter(x.values())))
        fixed = np.zeros((1, len(form.parameters)))
        self._constant = None if form.shapes else self._slopes(fixed, self._features(fixed))

    def terms(self, theta: Float[np.ndarray, "S p"]) -> list[np.ndarray]:
        if self._constant is not None:
            return [theta @ x.T for x in self._constant]
        return self.form.log_terms(theta, self.x, self.centre)

    def slopes(self, theta: Float[np.ndarray, "S p"]) -> list[np.ndarray]:
        if self._constant is not None:
            return self._constant
        return self._slopes(theta, self._features(theta))

    def _features(self, theta: np.ndarray) -> dict[str, Feature]:
        found = self.form.features(self.x, theta)
        return {key: f._replace(value=f.value - self.centre[key]) for key, f in found.items()}

    def _slopes(self, theta: np.ndarray, features: dict[str, Feature]) -> list[np.ndarray]:
        at, p = self.form.at, len(self.form.parameters)
        shape = (len(theta), self.n, p) if self.form.shapes else (self.n, p)
        found = []
        for term in self.form.terms:
            x = np.zeros(shape)
            x[..., at(term.coefficient)] = 1
            for power in term.powers:
                feature = features[power.feature]
                x[..., at(power.exponent)] += power.sign * feature.value
                for name, slope in feature.slopes.items():
                    x[..., at(name)] += power.sign * theta[:, [at(power.exponent)]] * slope
            found.append(x)
        return found
