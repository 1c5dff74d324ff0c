"""What a comparison is asked: series, what they have equal, what they are measured on and by."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from llmtrain.callbacks.loggers.wandb import WandB
from llmtrain.config import config
from llmtrain.data.corpus import SetAside
from llmtrain.evaluation.feature_settings import FeatureYardsticks
from llmtrain.evaluation.settings import Generation
from llmtrain.sweep.pool import Launch
from llmtrain.sweep.settings import check_folders, check_once
from llmtrain.typos import did_you_mean, nearest

Match = Literal["flops", "tokens", "time"]
UNITS: dict[Match, str] = {"flops": "model FLOPs", "tokens": "raw tokens", "time": "seconds of training"}


@config
class SameFlops:
    """All models cost the same model FLOPs a raw token as that of the baseline, whose width is given.

    Widths go in steps. At small sizes a step is more than ``within``, so the inner width of the first layer's MLP, or
    the state of its mixer where it has none, takes up the rest.
    """

    d_model: PositiveInt
    step: PositiveInt = 8
    within: Annotated[float, Gt(0), Le(0.2)] = 0.02  # relative; a series that comes no nearer is refused


@config
class OwnOptimum:
    """Each series has the size that its own law finds best at the budget."""

    fits: Path  # a fit.json of all series, or its folder, as scripts/fit.py writes it


@config
class Rates:
    """Learning rates that are tried: as many for one series as for any other, each in one run that is shorter.

    Where the best of any series is the last, every series gets a further one: beyond its best where that is the last,
    else beyond the better of its ends.
    """

    rates: PositiveInt = 3  # at first; 1: the first is taken, and nothing is tried
    first: PositiveFloat = 0.01  # the middle one
    factor: Annotated[float, Ge(1.1)] = 2.0  # between neighbours
    widen: NonNegativeInt = 2  # further ones of each series, at most
    share: Annotated[float, Gt(0), Le(1)] = 0.2  # of the budget, that a trial trains for
    seed: int = 0


@config
class HeldOut:
    """What no run trains on, and how probes share it out: shares of the files, of which each goes to one split."""

    texts: SetAside
    dev: Annotated[float, Gt(0), Le(0.5)] = 0.2
    test: Annotated[float, Gt(0), Le(0.5)] = 0.3  # the rest is for training probes


@config
class Contest:
    """Several series on equal terms: at every budget each is trained once a seed, and all are measured alike."""

    series: dict[str, tuple[str, ...]]  # by name, the words of train.py that make it beside the common ones
    common: tuple[str, ...] = ()  # words of train.py for every run
    baseline: str  # the series that all others are held against
    seeds: Annotated[tuple[int, ...], MinLen(1)] = (0, 1, 2)
    budgets: Annotated[tuple[PositiveFloat, ...], MinLen(1)]  # model FLOPs of a run of the baseline
    match: Match = "flops"  # what all runs of a budget have equal: what the baseline's run comes to
    tolerance: Annotated[float, Gt(0), Le(0.1)] = 0.01  # relative, of what is matched
    depth: PositiveInt = 4  # layers of every model; of an encoder-decoder, of both stacks together
    size: SameFlops | OwnOptimum
    rates: Rates
    held_out: HeldOut
    features: FeatureYardsticks
    generation: Generation
    untrained_seeds: PositiveInt = (
        1  # initial models of each series that are measured beside the trained ones
    )
    report: bool = True  # figures and a page
    wandb: WandB | None = None  # where tables and figures go besides
    launch: Launch
    name: str
    runs: Path = Path("runs")  # the comparison is a folder in it, its runs are folders in that

    def __post_init__(self) -> None:
        check_folders(self.name, self.series)
        if self.baseline not in self.series:
            near = nearest(self.baseline, self.series)
            raise ValueError(
                f"baseline={self.baseline!r} is none of the series: {did_you_mean(near, self.series)}"
            )
        if len(self.series) < 2:
            raise ValueError("series: give at least two, of which one is the baseline")
        check_once("seeds", self.seeds)
        check_once("budgets", self.budgets)
        if self.untrained_seeds > len(self.seeds):
            raise ValueError(f"untrained_seeds={self.untrained_seeds} is more than there are seeds")
        if self.held_out.dev + self.held_out.test >= 1:
            raise ValueError("held_out.dev and held_out.test leave nothing to train probes on")

    @property
    def folder(self) -> Path:
        return self.runs / self.name
