"""What a comparison shows and does not show, in sentences made of its results."""

import dataclasses
from collections.abc import Iterator, Sequence

from llmtrain.compare import words
from llmtrain.compare.notes import joined, of_one
from llmtrain.compare.results import Difference, Estimate, Result, Spread, Standing
from llmtrain.compare.saved import Comparison
from llmtrain.compare.statistics.estimate import LEAST_DOF
from llmtrain.compare.table import UNTRAINED

LEAST_SEEDS = 3


def summary(comparison: Comparison) -> list[str]:
    """A paragraph for each budget."""
    return [" ".join(statements(comparison, budget)) for budget in comparison.about.budgets]


def statements(comparison: Comparison, budget: int) -> Iterator[str]:
    """What is compared, what each yardstick of the summary shows, and what speaks against the numbers."""
    about = comparison.about
    main = [one for one in comparison.results if one.main and one.budget == budget and one.kind != "geometry"]
    others = [one.name for one in about.series if one.name != about.baseline]
    summed = [one for one in main if one.summary and any(standing.common for standing in one.standings)]
    yield (
        f"At {words.budget(about, budget)}, {words.listed(others)} {'are' if len(others) > 1 else 'is'} held "
        f"against {about.baseline}, with {words.seeds(about)} each."
    )
    for result in summed:
        yield " ".join(_of_yardstick(result, about.baseline))
    if left_out := [words.label(one) for one in main if not (one.summary or one.part)]:
        yield f"Left out here, since it is close to one series' own objective: {words.listed(left_out)}."
    yield from _weaknesses(comparison, budget, summed)


def _of_yardstick(result: Result, baseline: str) -> Iterator[str]:
    """Who is better, who is worse, of whom that is not known, and who has not learned."""
    name = words.label(result)
    standing = {one.series: one for one in result.standings}
    learned = [one for one in result.standings if one.learned is not False]
    if baseline not in standing:
        yield f"On {name}, {baseline} was not measured, so nothing is held against it."
        return
    if not learned:
        never = set.intersection(*(set(one.not_beaten) for one in result.standings))
        why = f": none was shown to beat {_baselines(sorted(never))}" if never else ""
        yield f"On {name}, no series has learned at this budget{why}."
        return
    judged = [one for one in result.differences if standing[one.series].learned is not False]
    told = [part for how in ("better", "worse") if (part := _shown(result, judged, how))]
    open_ = [one for one in judged if one.p_holm is not None and not one.shown]
    if open_:
        told.append(_open(open_))
    if told:
        yield f"On {name}, {'; '.join(told)}."
    elif not judged:
        yield f"On {name}, only {words.listed([one.series for one in learned])} has learned at this budget."
    else:
        yield f"On {name}, differences to {baseline} are not tested, since {_untested(result.spread)}."
    if behind := [one for one in result.standings if one.learned is False]:
        yield f"There, {_unlearned(behind)}."
    yield from _noted(result)


def _untested(spread: Spread) -> str:
    if spread.p_alike is not None and not spread.pooled:
        return "series scatter unlike"
    return "there are too few seeds" if spread.dof < LEAST_DOF else "the error of items is not known"


def _shown(result: Result, differences: list[Difference], how: str) -> str:
    found = [one for one in differences if words.verdict(result, one) == how]
    if not found:
        return ""
    sizes = [f"{one.series} (by {words.interval(_upright(one.estimate))})" for one in found]
    return f"{words.listed(sizes)} {'is' if len(found) == 1 else 'are'} {how}"


def _noted(result: Result) -> Iterator[str]:
    """What is said of single series, and not of all."""
    for series, notes in of_one(result).items():
        said = f" ({joined(notes)})" if notes else ""
        if not next(one for one in result.standings if one.series == series).common:
            yield f"The value of {series} means something else{said}, and is not ranked."
        elif notes:
            yield f"Of {series}: {joined(notes)}."


def _upright(found: Estimate) -> Estimate:
    """Its size, without the sign."""
    if found.value >= 0 or found.lo is None or found.hi is None:
        return found
    return dataclasses.replace(found, value=-found.value, lo=-found.hi, hi=-found.lo)


def _open(differences: list[Difference]) -> str:
    names = words.listed([one.series for one in differences])
    most = max((one.detectable or 0.0) for one in differences)
    return f"{words.NO_DIFFERENCE} of {names}, of which {most:.2g} would be shown with a probability of .8"


def _unlearned(standings: list[Standing]) -> str:
    said = [f"{one.series} (not shown to beat {_baselines(one.not_beaten)})" for one in standings]
    return f"{words.listed(said)} {'is' if len(said) == 1 else 'are'} {words.NOT_LEARNED}"


def _baselines(names: Sequence[str]) -> str:
    return words.listed(["its untrained model" if name == UNTRAINED else name for name in names])


def _weaknesses(comparison: Comparison, budget: int, results: list[Result]) -> Iterator[str]:
    """What a reader must hold against the numbers."""
    about = comparison.about
    unlike = [words.label(one) for one in results if not one.spread.pooled and one.spread.p_alike is not None]
    if unlike:
        yield (
            f"Where series scatter unlike ({words.listed(unlike)}), each has its own variance, and there is no p value."
        )
    if lost := [cell.run for cell in about.cells if cell.budget == budget and cell.status != "finished"]:
        yield f"Not finished, and so not in any number: {words.listed(lost)}."
    few = {one.series: one.seeds for result in results for one in result.standings if one.seeds < LEAST_SEEDS}
    if few:
        yield f"Fewer than {LEAST_SEEDS} seeds: {words.listed(list(few))}."
    if edges := [one.series for one in about.tuning if one.budget == budget and not one.inside]:
        yield f"The best learning rate of {words.listed(edges)} is the last tried: a better one may lie beyond."
