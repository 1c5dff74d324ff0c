"""Learning-rate schedules as pure functions of the step: a run resumed or branched computes the same rates."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import NonNegativeFloat

from llmtrain.config import config
from llmtrain.errors import ConfigError

Factor = Annotated[float, Ge(0), Le(1)]

_FALLS = {
    "linear": lambda t: 1 - t,
    "sqrt": lambda t: 1 - math.sqrt(t),
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


@config
class Schedule(ABC):
    """Warmup to the peak, a plateau, a decay that ends at the horizon; a length from 1 on is steps, below, a fraction.

    The kinds differ only in how long they decay and in which shape. The decay belongs to the horizon it was given: a
    cosine cut short, or held longer than planned, is a worse model of its length (Hoffmann et al. 2022, appendix B).
    """

    warmup: NonNegativeFloat = 0.01

    @abstractmethod
    def decay_steps(self, horizon: int) -> int:
        """How many of the ``horizon`` steps are the decay."""

    @abstractmethod
    def fall(self, t: float) -> float:
        """The factor when the fraction t in [0, 1] of the decay has passed; 1 at t = 0."""

    def warmup_steps(self, horizon: int) -> int:
        """How many of the ``horizon`` steps are below the peak because they warm up."""
        return _steps("warmup", self.warmup, horizon)

    def check(self, horizon: int) -> None:
        """Refuse a horizon that warmup and decay together do not fit in (ConfigError)."""
        warmup, decay = self.warmup_steps(horizon), self.decay_steps(horizon)
        if warmup + decay > horizon:
            raise ConfigError(
                f"schedule.warmup={self.warmup:g} is {warmup} steps and the decay {decay}, but the run has {horizon}: "
                "train longer, or give the lengths as fractions (schedule.warmup=0.01)"
            )

    def factor(self, step: int, horizon: int) -> float:
        """What every learning rate is multiplied by at ``step``, counted from 0; never 0 at the first step.

        The ramp reaches 1 at step ``warmup_steps``, the decay its final value at step ``horizon``, one past the last.
        """
        warmup, decay = self.warmup_steps(horizon), self.decay_steps(horizon)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if decay == 0 or step <= horizon - decay:
            return 1.0
        return self.fall(min(1.0, (step - (horizon - decay)) / decay))


@config
class Cosine(Schedule):
    """Half a cosine from the end of the warmup to the horizon (Loshchilov & Hutter 2017)."""

    final: Factor = 0.1

    def decay_steps(self, horizon: int) -> int:
        return max(0, horizon - self.warmup_steps(horizon))

    def fall(self, t: float) -> float:
        return self.final + (1 - self.final) * _FALLS["cosine"](t)


@config
class Linear(Schedule):
    """A straight line from the end of the warmup to the horizon."""

    final: Factor = 0.0

    def decay_steps(self, horizon: int) -> int:
        return max(0, horizon - self.warmup_steps(horizon))

    def fall(self, t: float) -> float:
        return self.final + (1 - self.final) * _FALLS["linear"](t)


@config
class WSD(Schedule):
    """Warmup, stable, decay: a plateau from which runs of all lengths branch (Hu et al. 2024; Hägele et al. 2024)."""

    decay: NonNegativeFloat = 0.2
    shape: Literal["linear", "sqrt", "cosine"] = "sqrt"
    final: Factor = 0.0

    def decay_steps(self, horizon: int) -> int:
        return _steps("decay", self.decay, horizon)

    def fall(self, t: float) -> float:
        return self.final + (1 - self.final) * _FALLS[self.shape](t)


@config
class Constant(Schedule):
    """The peak, from the end of the warmup on."""

    def decay_steps(self, horizon: int) -> int:
        return 0

    def fall(self, t: float) -> float:
        return 1.0


def _steps(name: str, length: float, horizon: int) -> int:
    if length < 1:
        return math.floor(length * horizon + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not length.is_integer():
        raise ConfigError(
            f"schedule.{name}={length:g} is no whole number of steps: write {round(length)}, or a fraction below 1"
        )
    return int(length)
