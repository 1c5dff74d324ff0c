"""The tables of a comparison as text in cells: one row a series, a column a yardstick; what is not one scale, apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmtrain.compare import words
from llmtrain.compare.notes import joined, numbered, of_all, of_one
from llmtrain.compare.results import Difference, Estimate, Result, Standing
from llmtrain.compare.saved import Comparison

_KINDS = {
    "features": "Frozen features",
    "fine_tuning": "Short fine-tuning",
    "generation": "Generation",
    "pseudo_likelihood": "Pseudo-likelihood",
    "geometry": "Geometry of features",
}
_LEFT_OUT = "Close to one series' own objective: left out of any summary"
_PARTS = "Minimal pairs by paradigm: parts of a number above"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # the first column is a name
    rule: int | None  # rows before it are series, from it on baselines
    caption: str


def tables(comparison: Comparison) -> list[Table]:
    """Of each budget: the kinds of yardsticks, then what is near one objective; last the differences."""
    found = []
    for budget in comparison.about.budgets:
        main = [one for one in comparison.results if one.budget == budget and one.main]
        groups = {title: [r for r in main if r.summary and r.kind == kind] for kind, title in _KINDS.items()}
        groups["Geometry of features"] += [r for r in main if not r.summary and r.kind == "geometry"]
        aside = [r for r in main if not r.summary and r.kind != "geometry"]
        groups[_LEFT_OUT] = [r for r in aside if not r.part]
        groups[_PARTS] = [r for r in aside if r.part]
        shown = {title: results for title, results in groups.items() if results}
        found += [_scores(comparison, title, results) for title, results in shown.items()]
        found += [_differences(comparison, title, results) for title, results in shown.items()]
    return [table for table in [*found, _growth(comparison)] if table.rows]


def _scores(comparison: Comparison, title: str, results: list[Result]) -> Table:
    about = comparison.about
    notes = numbered(results)
    series = [
        (one.name, *(_cell(result, one.name, notes) for result in results))
        for one in about.series
        if any(standing.series == one.name for result in results for standing in result.standings)
    ]
    names = dict.fromkeys(
        ref.name for result in results for ref in result.references if ref.role == "baseline"
    )
    below = [(name, *(_reference(result, name) for result in results)) for name in names]
    if any(ref.role == "untrained" for result in results for ref in result.references):
        below.append((f"{UNTRAINED}, the best", *(_best_untrained(result) for result in results)))
    below += [
        (name, *(_number(getattr(result, name)) for result in results))
        for name in ("chance", "ceiling")
        if any(getattr(result, name) is not None for result in results)
    ]
    return Table(
        title=f"{title}, {words.budget(about, results[0].budget)}",
        columns=("series", *(f"{words.label(result)}{words.arrow(result)}" for result in results)),
        rows=(*series, *below),
        rule=len(series),
        caption=" ".join(_caption(comparison, results, notes)),
    )


def _cell(result: Result, series: str, notes: Mapping[str, str]) -> str:
    standing = next((one for one in result.standings if one.series == series), None)
    if standing is None:
        return "none"
    difference = next((one for one in result.differences if one.series == series), None)
    raised = [notes[note] for note in of_one(result)[series]]
    return " ".join([words.value(standing.estimate), *raised, *_marks(result, standing, difference)])


def _marks(result: Result, standing: Standing, difference: Difference | None) -> Iterator[str]:
    if standing.learned is False:
        yield words.UNLEARNED
    if words.at_chance(result, standing.estimate):
        yield words.CHANCE
    if not standing.common:
        yield words.ODD
    if difference is not None and difference.shown:
        yield words.BETTER if words.verdict(result, difference) in ("better", "higher") else words.WORSE


def _reference(result: Result, name: str) -> str:
    found = next((r for r in result.references if r.role == "baseline" and r.name == name), None)
    return "" if found is None else words.value(found.estimate)


def _best_untrained(result: Result) -> str:
    found = [one.estimate for one in result.references if one.role == "untrained"]
    if not found:
        return ""
    pick = max if result.better == "higher" else min
    return words.value(pick(found, key=lambda estimate: estimate.value))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _caption(comparison: Comparison, results: list[Result], notes: Mapping[str, str]) -> Iterator[str]:
    about = comparison.about
    yield f"{words.matched(about)}."
    of = "seeds alone, on these texts" if results[0].kind == "geometry" else "seeds and items"
    yield f"Mean over {words.seeds(about)} ± half of the 95% interval, of {of}."
    standings = [standing for result in results for standing in result.standings]
    if any(one.learned is False for one in standings):
        yield f"{words.UNLEARNED} {words.NOT_LEARNED}: not shown to beat every baseline, so not ranked."
    if any(difference.shown for result in results for difference in result.differences):
        how = "higher or lower" if results[0].kind == "geometry" else "better or worse"
        yield f"{words.BETTER} {words.WORSE} shown to be {how} than {about.baseline}."
    if any(words.at_chance(result, one.estimate) for result in results for one in result.standings):
        yield f"{words.CHANCE} not distinguishable from chance."
    if any(not one.common for one in standings):
        yield f"{words.ODD} means something else, and is not ranked."
    for note, raised in notes.items():
        yield f"{raised} {note}."
    for result in results:
        if said := of_all(result):
            yield f"{words.label(result).capitalize()}: {joined(said)}."
    measured = {one.series for one in standings}
    if missing := [one.name for one in about.series if one.name not in measured]:
        yield f"Not measured here: {words.listed(missing)}."
    if any(not standing.estimate.se for standing in standings):
        yield "Without ±: no interval, for want of seeds, of items or of their error."


def _differences(comparison: Comparison, title: str, results: list[Result]) -> Table:
    about = comparison.about
    rows = [
        (
            one.series,
            words.label(result),
            words.interval(one.estimate, sign=True),
            words.p(one),
            _detectable(one),
            _rank(result, one.series),
            words.verdict(result, one),
        )
        for result in results
        for one in result.differences
    ]
    caption = (
        f"{words.matched(about)}. Differences to {about.baseline} with their 95% interval; p adjusted over the series "
        "of a yardstick (Holm); detectable: the smallest difference that would be shown with a probability of .8; "
        "ranks: those that all shown differences between series leave."
    )
    return Table(
        title=f"{title}: less {about.baseline}, {words.budget(about, results[0].budget)}",
        columns=("series", "yardstick", "difference", "p", "detectable", "rank", "verdict"),
        rows=tuple(rows),
        rule=None,
        caption=caption,
    )


def _growth(comparison: Comparison) -> Table:
    """The laws of errors in compute, where there are budgets enough."""
    about = comparison.about
    rows = [
        (
            one.series,
            f"{one.yardstick.replace('_', ' ')}, {one.metric}",
            words.interval(one.exponent),
            "; ".join(f"{m.value:.2f} [{m.lo:.2f}, {m.hi:.2f}] at {m.error:.2g}" for m in one.multipliers),
        )
        for one in comparison.growth
    ]
    caption = (
        f"{words.matched(about)}. Error, from 0 at the ceiling to 1 at chance, as E + A C^-alpha, with 95% intervals; "
        f"compute: how many times that of {about.baseline} a series takes for the same error, at three errors."
    )
    return Table(
        title="Growth with compute",
        columns=("series", "yardstick", "alpha", "compute"),
        rows=tuple(rows),
        rule=None,
        caption=caption,
    )


def _detectable(found: Difference) -> str:
    return "" if found.detectable is None else f"{found.detectable:.2g}"


def _rank(result: Result, series: str) -> str:
    standing = next(one for one in result.standings if one.series == series)
    return words.NOT_LEARNED if standing.learned is False else words.ranks(standing)


def wide(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """All numbers at full precision: one row a series or baseline of a budget, five columns a metric."""
    results = comparison.results
    names = list(dict.fromkeys((one.yardstick, one.metric) for one in results))
    parts = ("", " lo", " hi", " learned", " shown")
    head = ["budget", "series", "role", *(f"{y}/{m}{part}" for y, m in names for part in parts)]
    rows = []
    for budget in comparison.about.budgets:
        here = {(one.yardstick, one.metric): one for one in results if one.budget == budget}
        whose = [("trained", one.name) for one in comparison.about.series]
        whose += dict.fromkeys((ref.role, ref.name) for one in here.values() for ref in one.references)
        for role, name in whose:
            cells = [
                text for key in names for text in (_plain(here[key], role, name) if key in here else [""] * 5)
            ]
            rows.append([str(budget), name, role, *cells])
    return head, rows


def _plain(result: Result, role: str, name: str) -> list[str]:
    if role != "trained":
        found = [r for r in result.references if (r.role, r.name) == (role, name)]
        return [*_ends(found[0].estimate), "", ""] if found else [""] * 5
    standing = next((one for one in result.standings if one.series == name), None)
    if standing is None:
        return [""] * 5
    shown = next((str(one.shown).lower() for one in result.differences if one.series == name), "")
    learned = "" if standing.learned is None else str(standing.learned).lower()
    return [*_ends(standing.estimate), learned, shown]


def _ends(found: Estimate) -> list[str]:
    return ["" if v is None else repr(v) for v in (found.value, found.lo, found.hi)]
