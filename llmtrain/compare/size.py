"""The model of each series: of equal cost a raw token, or of its own best size at a budget."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property

from llmtrain.compare.load import words_of
from llmtrain.compare.settings import Contest, OwnOptimum, SameFlops
from llmtrain.compose import compose, run_from
from llmtrain.data.prepare import Progress
from llmtrain.errors import ConfigError
from llmtrain.run import Run
from llmtrain.scaling import predict, read_fit
from llmtrain.sweep.count import Counted, Series

_STATE = 4  # states of a mixer are its multiples where they are trimmed


@dataclasses.dataclass(frozen=True)
class Sized:
    """A series at one width."""

    series: Series  # with the words that trim it
    d_model: int

    @cached_property
    def counted(self) -> Counted:
        return self.series.counted(self.d_model)

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs, forward and backward, of a raw token."""
        return self.counted.flops.model / self.series.raw_per_row


def series_of(contest: Contest, progress: Progress | None) -> dict[str, Series]:
    """The series by name, their corpus prepared, once for all."""
    return {name: one_of(contest, name, progress) for name in contest.series}


def one_of(contest: Contest, name: str, progress: Progress | None) -> Series:
    words = words_of(contest, contest.series[name])
    return Series(name, words, depth=_depth(name, contest, words), progress=progress)


def _depth(name: str, contest: Contest, words: list[str]) -> int:
    """Layers of one stack; a series may have another number by a word of its own."""
    given: int | None = compose(words)["model"]["n_layers"]
    if given is not None:
        return given
    if not run_from([*words, f"model.n_layers={contest.depth}"]).objective.encoder:
        return contest.depth
    if contest.depth % 2:
        raise ConfigError(
            f"comparison.depth={contest.depth} cannot be split into the two stacks of {name}: give an even number, or "
            f"model.n_layers among the words of comparison.series.{name}"
        )
    return contest.depth // 2


def sized(contest: Contest, series: Mapping[str, Series], budget: float) -> dict[str, Sized]:
    """The model of each series at a budget.

    Raises ConfigError where a series has no model of the size that is asked for.
    """
    how = contest.size
    if isinstance(how, OwnOptimum):
        return {name: _optimal(how, one, budget) for name, one in series.items()}
    reference = Sized(series[contest.baseline], how.d_model)
    target = reference.flops_per_token
    return {
        name: reference if name == contest.baseline else _equal(one, target, how)
        for name, one in series.items()
    }


def _optimal(how: OwnOptimum, series: Series, budget: float) -> Sized:
    try:
        law = read_fit(how.fits, series.name)
    except ConfigError:
        raise ConfigError(
            f"comparison.size.fits={how.fits} has no series {series.name}: give the comparison's series the names that "
            "they have there, or fit a sweep over these series"
        ) from None
    n = predict(law, flops=budget).n
    if n is None:
        raise ConfigError(
            f"comparison.size.fits={how.fits}: its form sets no size for {series.name}; fit another one"
        )
    return Sized(series, series.at(n).d_model)


def _equal(series: Series, target: float, how: SameFlops) -> Sized:
    """The width whose cost a raw token is nearest to ``target``, trimmed where that is not near enough."""
    widths = [Sized(series, width) for width in _around(series, target, how.step)]
    tried = sorted(widths, key=lambda one: _off(one, target))
    nearest = tried[0]
    if _off(nearest, target) > how.within:
        tried += [trimmed for one in widths if (trimmed := _trimmed(one, target)) is not None]
        nearest = min(tried, key=lambda one: _off(one, target))
    if _off(nearest, target) > how.within:
        raise ConfigError(
            f"series {series.name}: no model costs {target:,.0f} FLOPs a raw token within {how.within:.0%}; nearest: "
            f"{nearest.flops_per_token:,.0f} at d_model={nearest.d_model}. Give comparison.size.within, another "
            "comparison.size.d_model or a smaller head_dim"
        )
    return nearest


def _off(one: Sized, target: float) -> float:
    return abs(one.flops_per_token / target - 1)


def _around(series: Series, target: float, step: int) -> list[int]:
    """The widths next below and above, of those that the layers can have."""
    below, width, refused = 0, 0, 0
    while True:
        width += step
        try:
            cost = Sized(series, width).flops_per_token
        except ValueError:  # as a layer refuses a width
            refused += 1
            if refused > 4096 // step and not below:
                raise
            continue
        if cost >= target:
            return [below, width] if below else [width]
        below = width


def _trimmed(one: Sized, target: float) -> Sized | None:
    """The same width with another inner width of the first layer; none where that has nothing to trim.

    Layers of the pattern that refer to the first change with it. The cost is linear in what is trimmed.
    """
    for key, value, unit in _knobs(one.series.run, one.d_model):
        wider = _with(one, key, value + unit)
        slope = (wider.flops_per_token - one.flops_per_token) / unit
        if slope <= 0:
            continue
        new = value + unit * round((target - one.flops_per_token) / slope / unit)
        if value / 2 <= new <= 2 * value:  # else it would be another kind of model
            return _with(one, key, new)
    return None


def _knobs(run: Run, d_model: int) -> Iterator[tuple[str, float | int, float | int]]:
    """What may be trimmed: key, value, unit."""
    first = run.model.layers[0]
    ratio, multiple = getattr(first.mlp, "ratio", None), getattr(first.mlp, "multiple_of", 1)
    if ratio is not None:
        yield "model.layers.0.mlp.ratio", ratio, multiple / d_model
    state = getattr(first.mixer, "d_state", None)
    if state is not None:
        yield "model.layers.0.mixer.d_state", state, _STATE


def _with(one: Sized, key: str, value: float | int) -> Sized:
    words = [*one.series.words, f"{key}={value:.6g}"]
    return Sized(Series(one.series.name, words, depth=one.series.depth), one.d_model)
