"""What the numbers of a step say about it: whether it may move the weights, and what happens where it may not."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveFloat

from llmtrain.config import config

Kind = Literal["nonfinite", "spike"]
Action = Literal["update", "log", "skip", "rollback", "stop"]


@config
class Guard:
    """What a run does about a loss or gradient that is not finite, and about a loss far above those before it."""

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    max_skips: NonNegativeInt = 10  # steps in a row; one more ends the run
    threshold: PositiveFloat | None = None  # the score from which a loss is a spike; none: no loss is
    window: Annotated[int, Ge(8)] = (
        128  # losses that the score compares with; before so many, no loss is a spike
    )
    on_spike: Literal["log", "skip", "rollback"] = "log"
    max_rollbacks: NonNegativeInt = 3  # in the whole run; one more ends it
    margin: NonNegativeInt = 0  # further steps, on each side of the bad one, whose rows a rollback goes past

    @property
    def rolls_back(self) -> bool:
        return self.on_nonfinite == "rollback" or (self.threshold is not None and self.on_spike == "rollback")


class Verdict(NamedTuple):
    action: Action
    kind: Kind | None = None  # none: the step is as any other
    score: float | None = None  # none: not finite, or too few losses to compare with

    @property
    def taken(self) -> bool:
        """Whether the weights move."""
        return self.action in ("update", "log")


class Judge:
    """Judges one step after another, the same on every rank: it sees nothing but what all ranks know."""

    def __init__(self, cfg: Guard) -> None:
        self.cfg = cfg
        self.losses: deque[float] = deque(maxlen=cfg.window)  # of the last steps that were taken: all finite
        self.skips = 0  # the last steps, as far as they were skipped
        self.rollbacks = 0  # of the whole run

    def judge(self, losses: Sequence[float], norms: Sequence[float]) -> Verdict:
        """What becomes of a step with this loss and this gradient norm on each rank; it is taken into account."""
        if not all(map(math.isfinite, (*losses, *norms))):
            return self._bounded(self.cfg.on_nonfinite, "nonfinite", None)
        loss = statistics.fmean(losses)
        threshold = self.cfg.threshold if len(self.losses) == self.cfg.window else None
        score = None if threshold is None else robust_score(loss, self.losses)
        spike = threshold is not None and score is not None and score > threshold
        if spike and self.cfg.on_spike != "log":
            return self._bounded(self.cfg.on_spike, "spike", score)
        self.losses.append(loss)
        self.skips = 0
        return Verdict("log", "spike", score) if spike else Verdict("update", None, score)

    def values(self) -> dict[str, Any]:
        """All of its state, as JSON."""
        return {"losses": list(self.losses), "skips": self.skips, "rollbacks": self.rollbacks}

    def load_values(self, values: Mapping[str, Any]) -> None:
        self.losses = deque(values["losses"], maxlen=self.cfg.window)
        self.skips, self.rollbacks = values["skips"], values["rollbacks"]

    def _bounded(
        self, action: Literal["stop", "skip", "rollback"], kind: Kind, score: float | None
    ) -> Verdict:
        if action == "skip" and self.skips < self.cfg.max_skips:
            self.skips += 1
        elif action == "rollback" and self.rollbacks < self.cfg.max_rollbacks:
            self.rollbacks += 1
        else:
            action = "stop"
        return Verdict(action, kind, score)


def robust_score(value: float, window: Sequence[float] | deque[float]) -> float:
    """How far ``value`` lies above the median of ``window``, in standard deviations as the median absolute deviation
    gives them (Iglewicz and Hoaglin 1993): a few outliers in the window move neither.

    The deviation is taken to be at least 1% of the median, else a window that hardly varies makes noise a spike.
    """
    median = statistics.median(window)
    deviation = 1.4826 * statistics.median(abs(x - median) for x in window)
    return (value - median) / max(deviation, 0.01 * abs(median), 1e-12)
