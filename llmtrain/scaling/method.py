"""How a law is fitted: the choices that are made before the data are seen, and stated with the result."""

import math
from dataclasses import field
from typing import Annotated, Literal

from pydantic import AllowInfNan

from llmtrain.config import config
from llmtrain.errors import ConfigError
from llmtrain.scaling.forms import FORMS
from llmtrain.typos import did_you_mean, nearest

Endless = Annotated[float, AllowInfNan(True)]  # infinity has a meaning
TWO_STAGE = ("isoflop", "envelope")  # forms that fit optima, not runs


@config
class Method:
    form: str = "chinchilla"
    residual: Literal["log", "raw"] = "log"
    delta: Endless | Literal["auto"] = "auto"  # of Huber's loss; auto: 1.345 sd; inf: least squares
    drop_highest_loss: int = 0
    drop_worst_residual: int = 0  # after a first fit; the rest is fitted again
    fix: dict[str, Endless] = field(default_factory=dict)  # parameters that are not fitted
    frontier_bins: int | None = None  # fit the lowest loss of each of so many bins of ln C
    minimum: Literal["auto", "quadratic", "robust", "akima", "local"] = "auto"  # of an IsoFLOP curve
    bootstrap: int = 4000  # resamples; 0: none
    seed: int = 0
    level: float = 0.95  # of every interval
    at: tuple[float, ...] = ()  # FLOPs where the optimum is stated, beside the most seen and ten times that

    def __post_init__(self) -> None:
        if self.form not in (*FORMS, *TWO_STAGE):
            names = (*FORMS, *TWO_STAGE)
            raise ConfigError(f"form={self.form}: {did_you_mean(nearest(self.form, names), names)}")
        if not isinstance(self.delta, str) and not self.delta > 0:
            raise ConfigError(f"delta={self.delta} must be above 0; inf is least squares")
        if not 0.5 <= self.level < 1:
            raise ConfigError(f"level={self.level} must be from .5 to below 1")
        for name in ("drop_highest_loss", "drop_worst_residual", "bootstrap", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.frontier_bins is not None and self.frontier_bins < 3:
            raise ConfigError(f"frontier_bins={self.frontier_bins} must be 3 or more")
        if any(not (math.isfinite(flops) and flops > 0) for flops in self.at):
            raise ConfigError(f"at={list(self.at)}: FLOPs must be above 0")
        form = FORMS.get(self.form, FORMS["power"])  # isoflop and envelope fit it to the losses of optima
        scaled = {term.coefficient for term in form.terms if term.powers}
        for name, value in self.fix.items():
            form.at(name)
            if math.isnan(value):
                raise ConfigError(f"fix {name}={value}: give a number")
            if name in scaled and value != 0:
                raise ConfigError(f"fix {name}={value}: coefficients are fitted; fix E, exponents or shapes")
            if name in form.shapes and not value > 0:
                raise ConfigError(f"fix {name}={value}: a shape must be above 0")
            if name in form.coefficients and not 0 <= value < math.inf:
                raise ConfigError(
                    f"fix {name}={value}: what losses are made of must be 0 or more, and finite"
                )
            if name in form.exponents and math.isinf(value):
                raise ConfigError(f"fix {name}={value}: an exponent must be finite")
