"""What is checked, at which widths and depths, and with what: the question that ``scripts/coord_check.py`` answers."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Gt, MinLen
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from llmtrain.compose import build, run_from
from llmtrain.config import config
from llmtrain.errors import ConfigError
from llmtrain.nn.parametrization import CompleteP, MuP, Standard
from llmtrain.overrides import parse
from llmtrain.refusals import refusal
from llmtrain.run import Run

Axis = Literal["width", "depth"]
TIMES = (2, 4, 8, 16)  # the base's width, and depth
_PREFIX = "check."


@config
class Check:
    """How a parametrisation is tried, beside the standard one."""

    widths: tuple[PositiveInt, ...] | None = None  # none: 2, 4, 8 and 16 times the base's
    depths: tuple[PositiveInt, ...] | None = (
        None  # none: 2, 4, 8 and 16 times the base's, if depth is carried
    )
    seeds: PositiveInt = 4
    steps: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (1, 5, 10)  # after which outputs are compared
    tolerance: PositiveFloat = 0.1  # of a slope
    rates: tuple[PositiveFloat, ...] = ()  # of the base; none: where the best one lies is not looked for
    rate_seeds: PositiveInt = 2
    rate_steps: PositiveInt = 200  # of each run that looks for the best rate
    rate_rows: PositiveInt = 256  # that were not trained on, whose loss is what a rate is judged by
    octaves: Annotated[float, Gt(0)] = 1.0  # the best rate may move by so many factors of 2 over all widths
    out: Path = Path("runs/coord_check")

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            if sizes is not None and len(set(sizes)) < 2:
                raise ValueError(
                    f"{name} must be at least two different ones, for a slope, got {list(sizes)}"
                )
        if self.rates and len(set(self.rates)) < 5:
            raise ValueError(f"rates must be at least five, for a parabola, got {list(self.rates)}")


class Case(NamedTuple):
    """One model that is trained for some steps."""

    parametrization: Literal["standard", "given"]
    axis: Axis
    size: int  # along the axis
    seed: NonNegativeInt


class Question(NamedTuple):
    check: Check
    run: Run  # at the base's width and depth

    @property
    def parametrization(self) -> MuP:
        assert isinstance(self.run.parametrization, MuP), "asked"
        return self.run.parametrization

    @property
    def base_depth(self) -> int:
        return self.run.model.n_layers or self.run.size.n_layers

    def sizes(self, axis: Axis) -> tuple[int, ...]:
        """The widths, or the depths; none where the parametrisation leaves that axis alone."""
        given = self.check.widths if axis == "width" else self.check.depths
        if given is not None:
            return tuple(sorted(set(given)))
        if axis == "width":
            return tuple(times * self.parametrization.base_width for times in TIMES)
        carried = isinstance(self.parametrization, CompleteP)
        return tuple(times * self.base_depth for times in TIMES) if carried else ()

    def cases(self, axis: Axis, seeds: int) -> Iterator[Case]:
        for parametrization in ("standard", "given"):
            for size in self.sizes(axis):
                for seed in range(seeds):
                    yield Case(parametrization, axis, size, seed)

    def run_of(self, case: Case, *, lr: float | None = None) -> Run:
        """The run of a case. ``lr`` is a rate at the base, which all rates of the optimiser follow in proportion."""
        run, by_width = self.run, case.axis == "width"
        model = dataclasses.replace(
            run.model,
            d_model=case.size if by_width else self.parametrization.base_width,
            n_layers=self.base_depth if by_width else case.size,
        )
        optim = run.optim
        if lr is not None:
            rates = [f.name for f in dataclasses.fields(optim) if f.name in ("lr", "adamw_lr")]
            optim = dataclasses.replace(optim, **{n: getattr(optim, n) * lr / optim.lr for n in rates})
        return dataclasses.replace(
            run,
            model=model,
            optim=optim,
            seed=case.seed,
            parametrization=Standard() if case.parametrization == "standard" else run.parametrization,
        )


def question_from(words: Sequence[str]) -> Question:
    """What a command line asks: words that begin with ``check.`` are the check's own, all others those of train.py.

    Raises ConfigError in one line for whatever cannot work.
    """
    own = [word for word in words if word.startswith(_PREFIX)]
    given = {o.key.removeprefix(_PREFIX): o.value for o in parse(own, {})}
    check: Check = build(_plain(given))
    run = run_from(["parametrization=mup", *(w for w in words if w not in own), "trainer.precision=fp32"])
    if not isinstance(run.parametrization, MuP):
        raise ConfigError(
            f"parametrization={run.parametrization.label} promises nothing over widths: set parametrization=mup or "
            "completep, which are tried beside it"
        )
    if isinstance(run.parametrization, CompleteP):
        run = dataclasses.replace(
            run, model=dataclasses.replace(run.model, n_layers=run.parametrization.base_depth)
        )
    question = Question(check, run)
    for axis in ("width", "depth"):
        for case in question.cases(axis, 1):
            try:
                question.run_of(case)
            except ValidationError as error:  # a width that layers cannot have
                raise refusal(error, {}) from None
    return question


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Check)}
    for name in given.keys() - known:
        from llmtrain.typos import did_you_mean, nearest

        near = [f"{_PREFIX}{n}" for n in nearest(name, sorted(known))]
        raise ConfigError(
            f"unknown key {_PREFIX}{name}: {did_you_mean(near, [_PREFIX + n for n in sorted(known)])}"
        )
    return {"_target_": f"{Check.__module__}.{Check.__qualname__}"} | given
