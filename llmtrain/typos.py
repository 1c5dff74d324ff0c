"""The nearest valid names for one that is not: what a typo is answered with."""

from collections.abc import Iterable

from rapidfuzz.distance import OSA  # insertions, deletions, substitutions and swaps of neighbours


def nearest(wrong: str, names: Iterable[str]) -> list[str]:
    """Of ``names``, those within reach of ``wrong``, nearest first: a third of its letters may differ, or two."""
    return _ranked({name: float(OSA.distance(wrong.lower(), name.lower())) for name in names}, _reach(wrong))


def nearest_keys(wrong: str, keys: Iterable[str]) -> list[str]:
    """The same for dotted keys, of which a user may have left out or mistaken the first parts.

    ``lr`` finds ``optim.lr``: the end of a key counts half an edit more than the whole, a right last part under a wrong
    parent two.
    """
    parts = wrong.count(".") + 1
    leaf = wrong.rpartition(".")[2]
    cost: dict[str, float] = {}
    for key in keys:
        tail = ".".join(key.split(".")[-parts:])
        cost[key] = min(float(OSA.distance(wrong, key)), OSA.distance(wrong, tail) + 0.5)
        if key.rpartition(".")[2] == leaf:
            cost[key] = min(cost[key], 2.0)
    return _ranked(cost, _reach(wrong))


def did_you_mean(found: list[str], names: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the nearest, or else all there are."""
    if found:
        return f"did you mean {' or '.join(found[:3])}?"
    return f"there are {', '.join(names)}"


def _reach(wrong: str) -> float:
    return max(2.0, len(wrong) / 3) if len(wrong) > 3 else 1.0


def _ranked(cost: dict[str, float], reach: float) -> list[str]:
    within = [name for name, value in cost.items() if value <= reach]
    # of names as near, the shallower, then the earlier in the config; only what is about as near as the first is shown
    within.sort(key=lambda name: (cost[name], name.count(".")))
    return [name for name in within if cost[name] <= cost[within[0]] + 0.5]
