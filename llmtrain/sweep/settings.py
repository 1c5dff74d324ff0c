"""What a sweep is asked: sizes, budgets, seeds and series, with the method that reads them fixed beforehand."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from llmtrain.config import config, is_folder_name
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.frontier import has_optimum
from llmtrain.scaling.method import TWO_STAGE, Method
from llmtrain.sweep.cells import Cell, Role, Target
from llmtrain.sweep.forecast import Prior
from llmtrain.sweep.ladder import fresh, ladder
from llmtrain.sweep.pool import Launch


@config
class Optimum:
    """The compute-optimal size that a grid is laid around: n at a budget, and how it grows with compute."""

    n: PositiveFloat  # parameters without the input embedding, the head once
    flops: PositiveFloat  # the budget at which it is best
    exponent: PositiveFloat = 0.5  # of N*(C) ~ C^exponent

    def at(self, flops: float) -> float:
        return self.n * (flops / self.flops) ** self.exponent


@config
class Tuning:
    """Learning rates tried at the corners (N, D) of the grid, and the rule that is fitted to the best of them.

    log lr = c + c_N ln N + c_D ln D, since the best rate falls with both (Porian et al. 2024); a corner's best is the
    vertex of a parabola in log lr through the best rate and its neighbours, which must lie between tried ones.
    """

    rates: PositiveInt = (
        3  # at each corner before any is widened; 1: the first is taken, and nothing is tried
    )
    first: PositiveFloat = 0.01  # the middle one
    factor: Annotated[float, Ge(1.1)] = 2.0  # between neighbours
    widen: NonNegativeInt = 3  # further rates at a corner, at most, until the best is inside
    corners: Literal[4, 2] = (
        4  # 2: the smallest size alone, for a parametrisation that carries rates over widths
    )


@config
class BatchTest:
    """Whether all cells take a larger batch than the config's: the middle cell is tried at it, on as many tokens.

    A larger one is taken where the mean loss of its seeds is worse by no more than a standard error of that difference.
    """

    doublings: PositiveInt = 1  # at most; each is tried where no cell would fall under ``limits.least_steps``
    seeds: tuple[int, ...] = (0, 1)
    # the learning rate goes with batch^power: .5 for Adam (Malladi et al. 2022, arXiv:2205.10287), 1 for plain SGD
    power: NonNegativeFloat = 0.5

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds=[] tries nothing: give at least one seed")


@config
class Noise:
    """Replicates of the middle cell: the sd of their losses takes the place of ``prior.seed_sd`` in the forecast."""

    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 3:
            raise ValueError(f"seeds={list(self.seeds)}: an sd needs at least 3 different seeds")


@config
class Limits:
    """What a cell must have to say something; one that has less is left out, or kept and said so."""

    least_steps: PositiveInt = 400
    least_tokens_per_param: PositiveFloat = 3.0
    most_epochs: PositiveFloat = 1.25
    beyond: Literal["say", "drop"] = "say"


@config
class HeldOut:
    """Larger runs that no fit sees: their losses are predicted before they are trained."""

    flops: PositiveFloat
    n: PositiveFloat | None = None  # none: the fitted optimum at that budget
    seeds: tuple[int, ...] = (0, 1)
    most_error: PositiveFloat = (
        0.02  # relative: the prediction holds if every run is as near and in its interval
    )
    most_half_width: PositiveFloat = 0.04  # and the interval no wider, relative

    def __post_init__(self) -> None:
        check_seeds("held_out.seeds", self.seeds)


def check_seeds(key: str, seeds: tuple[int, ...]) -> None:
    """Raises ValueError where there are none, or one would count as a replicate of itself."""
    if not seeds:
        raise ValueError(f"{key}=[] trains nothing: give at least one seed")
    check_once(key, seeds)


def check_once(key: str, values: Sequence[int] | Sequence[float]) -> None:
    """Raises ValueError where one of ``values`` stands twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{key}={list(values)} has one of them twice")


def check_grid(**lists: Sequence[float]) -> None:
    """Raises ValueError for a list of a grid that is empty, or has a value twice."""
    for key, values in lists.items():
        if not values:
            raise ValueError(f"{key}=[] makes no cell: give at least one")
        check_once(key, values)


def check_predictable(fit: Method, held: "HeldOut | None") -> None:
    """Raises ValueError where what is held out could not be predicted by the form: after training it is too late."""
    if held is None:
        return
    sizes = fit.form in TWO_STAGE or has_optimum(FORMS[fit.form])
    if "experts" in (() if fit.form in TWO_STAGE else FORMS[fit.form].needs):
        raise ValueError(
            f"fit.form={fit.form} asks for the experts of a run, which no held-out run is given: held_out=null, or "
            "another form"
        )
    if held.n is None and not sizes:
        raise ValueError(f"fit.form={fit.form} sets no size: give held_out.n")
    if held.n is not None and fit.form in TWO_STAGE:
        raise ValueError(
            f"fit.form={fit.form} predicts the best run of a budget, not one of held_out.n={held.n:g}: leave it null"
        )


def check_without_budgets(fit: Method) -> None:
    """Raises ValueError where the form reads curves of equal FLOPs, and the grid has none."""
    if fit.form == "isoflop":
        raise ValueError("fit.form=isoflop reads runs of equal FLOPs, and only sweep=isoflop has them")


def check_folders(name: str, series: Iterable[str]) -> None:
    """Raises ValueError where a question or one of its series has a name that is no folder's."""
    for key, given in (("name", name), *(("series", one) for one in series)):
        if not is_folder_name(given):
            raise ValueError(f"{key}={given!r} must be the name of one folder")


@config
class Sweep(ABC):
    series: dict[str, tuple[str, ...]]  # by name, the words of train.py that make it beside the common ones
    common: tuple[str, ...] = ()  # words of train.py for every cell
    seeds: tuple[int, ...] = (0,)
    depth: PositiveInt = 3  # layers of all cells: a change of depth alone would show as a residual
    batch_test: BatchTest | None = None  # before the grid is laid out; none: the batch is the config's
    tuning: Tuning
    noise: Noise | None = None  # measured before the cells run; none: the prior's
    limits: Limits
    held_out: HeldOut | None = None
    fit: Method  # fixed before any cell runs
    prior: Prior
    report: bool = True  # figures and a page beside each fit
    launch: Launch
    name: str
    runs: Path = Path("runs")  # the sweep is a folder in it, its cells are folders in that

    def __post_init__(self) -> None:
        check_folders(self.name, self.series)
        check_seeds("seeds", self.seeds)
        check_predictable(self.fit, self.held_out)

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @abstractmethod
    def grid(self, series: str) -> Iterator[Target]:
        """The cells that are fitted, of one series."""

    def arranged(self, cells: list[Cell]) -> list[Cell]:
        """The cells of a grid, counted, as they are run."""
        return cells

    def alone(self, cell: Cell) -> Cell:
        """A cell that is not in the grid, trained by the recipe of those that are."""
        return cell

    def targets(self) -> list[Target]:
        """The cells that are fitted, of all series and seeds, the dearest first."""
        found = [target for series in self.series for target in self.grid(series)]
        return sorted(found, key=lambda t: -t.flops)

    def held_out_targets(self, series: str, n: float) -> list[Target]:
        """Of one series, a cell of ``n`` parameters for each seed; none where nothing is held out."""
        if (held := self.held_out) is None:
            return []
        return [Target(Role.HELD_OUT, series, n, held.flops, seed) for seed in held.seeds]


@config
class IsoFlop(Sweep):
    """At each budget, sizes around the expected optimum (Hoffmann et al. 2022, approach 2; approach 3 fits it too)."""

    budgets: tuple[PositiveFloat, ...]  # model FLOPs
    factors: tuple[PositiveFloat, ...] = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the optimum
    optimum: Optimum

    def __post_init__(self) -> None:
        super().__post_init__()
        check_grid(budgets=self.budgets, factors=self.factors)

    def grid(self, series: str) -> Iterator[Target]:
        for flops in self.budgets:
            for factor in self.factors:
                for seed in self.seeds:
                    yield Target(Role.CELL, series, factor * self.optimum.at(flops), flops, seed)


@config
class Parametric(Sweep):
    """Sizes x tokens a parameter: a rectangle in (N, D/N), for approach 3 alone."""

    sizes: tuple[PositiveFloat, ...]  # parameters without the input embedding, the head once
    tokens_per_param: tuple[PositiveFloat, ...] = (5.0, 10.0, 20.0, 40.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_without_budgets(self.fit)
        check_grid(sizes=self.sizes, tokens_per_param=self.tokens_per_param)

    def grid(self, series: str) -> Iterator[Target]:
        for n in self.sizes:
            for ratio in self.tokens_per_param:
                for seed in self.seeds:
                    yield Target(Role.CELL, series, n, 6 * ratio * n**2, seed, tokens=ratio * n)


@config
class Ladder(Sweep):
    """Sizes x horizons, those of one size and seed being branches of one trunk: cheap in runs, and not independent."""

    sizes: tuple[PositiveFloat, ...]  # parameters without the input embedding, the head once
    tokens_per_param: tuple[PositiveFloat, ...] = (5.0, 10.0, 20.0, 40.0)  # the horizons
    decay: Annotated[float, Gt(0), Lt(1)] = 0.2  # of a horizon
    warmup: Annotated[float, Gt(0), Le(0.1)] = 0.1  # of the shortest horizon

    def __post_init__(self) -> None:
        super().__post_init__()
        check_without_budgets(self.fit)
        check_grid(sizes=self.sizes, tokens_per_param=self.tokens_per_param)

    def grid(self, series: str) -> Iterator[Target]:
        for n in self.sizes:
            for ratio in self.tokens_per_param:
                for seed in self.seeds:
                    yield Target(Role.BRANCH, series, n, 6 * ratio * n**2, seed, tokens=ratio * n)

    def arranged(self, cells: list[Cell]) -> list[Cell]:
        return ladder(cells, decay=self.decay, warmup=self.warmup)

    def alone(self, cell: Cell) -> Cell:
        """Warmed up for as long as a trunk of its size, and decayed as a branch of its length."""
        share = min(
            1.0, min(self.tokens_per_param) * cell.n / cell.tokens
        )  # of it, that the shortest horizon is
        return fresh(cell, decay=self.decay, warmup=self.warmup * share)
