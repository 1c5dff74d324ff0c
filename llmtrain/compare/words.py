"""How numbers and choices of a comparison are said, the same in tables, figures and sentences."""

import math
from collections.abc import Sequence

from llmtrain.compare.results import Difference, Estimate, Result, Standing
from llmtrain.compare.saved import About

UNLEARNED, ODD, CHANCE, BETTER, WORSE = "†", "‡", "≈", "▲", "▼"
NOT_LEARNED = "not learned at this budget"
NO_DIFFERENCE = "the data do not show a difference"
_MATCHED = {"flops": "model FLOPs", "tokens": "raw tokens", "time": "time of training"}
_SIZES = {
    "flops_per_token": "sizes of equal model FLOPs a raw token",
    "optimum": "each series at its own compute-optimal size",
}


def matched(about: About) -> str:
    """What all cells of a budget have equal, as every caption says it."""
    trials = {len(tuning.losses) for tuning in about.tuning}
    rates = f"; best of {min(trials)} learning rates for every series" if len(trials) == 1 else ""
    within = f"within {100 * about.tolerance:.2g}% of the baseline's"
    return f"Matched: {_MATCHED[about.matched]}, {within}; {_SIZES[about.size]}{rates}"


def budget(about: About, flops: int) -> str:
    """A budget by what is matched: where that is not FLOPs, these are the baseline's."""
    return f"{short(flops)} model FLOPs a cell" + (
        "" if about.matched == "flops" else f" of {about.baseline}"
    )


def short(number: float | int) -> str:
    return f"{number:.3g}".replace("e+", "e")


def label(result: Result) -> str:
    """Of a column or an axis."""
    name = result.yardstick.replace("_", " ")
    return name if result.metric in name else f"{name}, {result.metric}"


def arrow(result: Result) -> str:
    """Which way is better; of geometry neither is."""
    if result.kind == "geometry":
        return ""
    return " ↑" if result.better == "higher" else " ↓"


def value(found: Estimate) -> str:
    """With half of its interval, to two digits of that."""
    if found.lo is None or found.hi is None:
        return f"{found.value:.4g}"
    half = (found.hi - found.lo) / 2
    places = _places(half)
    return f"{found.value:.{places}f} ± {half:.{places}f}"


def interval(found: Estimate, *, sign: bool = False) -> str:
    """With the ends of its interval."""
    form = "+" if sign else ""
    if found.lo is None or found.hi is None:
        return f"{found.value:{form}.4g}"
    places = _places((found.hi - found.lo) / 2)
    ends = f"{found.lo:{form}.{places}f}, {found.hi:{form}.{places}f}"
    return f"{found.value:{form}.{places}f} [{ends}]"


def _places(half: float) -> int:
    """Decimals that show two digits of ``half``."""
    return 3 if half == 0 else max(0, 1 - math.floor(math.log10(half)))


def at_chance(result: Result, found: Estimate) -> bool:
    """Whether chance lies in the interval."""
    if result.chance is None or found.lo is None or found.hi is None:
        return False
    return found.lo <= result.chance <= found.hi


def p(found: Difference) -> str:
    if found.p_holm is None:
        return ""
    return "< .0001" if found.p_holm < 1e-4 else f"{found.p_holm:.4f}".removeprefix("0")


def better(result: Result, found: Difference) -> bool:
    return (found.estimate.value > 0) == (result.better == "higher")


def verdict(result: Result, found: Difference) -> str:
    if found.shown and result.kind == "geometry":
        return "higher" if found.estimate.value > 0 else "lower"
    if found.shown:
        return "better" if better(result, found) else "worse"
    if found.p_holm is None:
        return "not tested"
    return "no difference shown"


def ranks(found: Standing) -> str:
    if found.ranks is None:
        return ""
    best, worst = found.ranks
    return str(best) if best == worst else f"{best} to {worst}"


def seeds(about: About) -> str:
    return "one seed" if len(about.seeds) == 1 else f"{len(about.seeds)} seeds"


def listed(names: Sequence[str]) -> str:
    """As a sentence does: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
