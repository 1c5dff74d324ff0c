"""Items of yardsticks whose scatter is planted, and what is judged and said of them."""

from collections.abc import Sequence

import numpy as np

from compared import BUDGET, about
from llmtrain.compare.judge import judge
from llmtrain.compare.results import Result
from llmtrain.compare.saved import Comparison, Whose, gathered
from llmtrain.evaluation.base import Items, Measured

NAMES = tuple(one.name for one in about().series)
GROUPS, A_GROUP = 30, 3


def drawn(
    rng: np.random.Generator, effects: Sequence[float], groups: int = GROUPS
) -> list[tuple[str, int, Items]]:
    """Values of items: of seeds, items, series on items, groups, and of everything at once."""
    n = groups * A_GROUP
    group = np.repeat(np.arange(groups), A_GROUP)
    ids, names = tuple(map(str, range(n))), tuple(map(str, group))
    hard = rng.normal(0, 0.2, n) + rng.normal(0, 0.1, groups)[group]
    found = []
    for name, effect in zip(NAMES, effects, strict=False):
        own = rng.normal(0, 0.1, n) + rng.normal(0, 0.05, groups)[group]
        for seed in range(3):
            noise = rng.normal(0, 0.015) + rng.normal(0, 0.2, n)
            found.append((name, seed, Items(ids, names, 0.5 + effect + hard + own + noise)))
    return found


def measured(items: Items, **more: object) -> Measured:
    plain = Measured(
        yardstick="y", kind="features", split="test", metric="accuracy", value=float(items.value.mean()),
        better="higher", n=len(items.value), items=items,
    )  # fmt: skip
    return plain._replace(**more)


def judged(found: list[tuple[str, int, Items]]) -> Result:
    rows, items = gathered(
        (Whose(series=name, role="trained", seed=seed, budget=BUDGET), measured(one))
        for name, seed, one in found
    )
    [result] = judge(Comparison(about=about(), rows=rows), items).results
    return result


def said(result: Result) -> dict[str, float]:
    """Every number that a reader would go by."""
    numbers: dict[str, float] = {}
    for one in (*result.standings, *result.differences):
        kind = type(one).__name__
        for name in ("value", "lo", "hi"):
            numbers[f"{kind} {one.series} {name}"] = getattr(one.estimate, name)
    for standing in result.standings:
        best, worst = standing.ranks or (0, 0)
        numbers |= {f"{standing.series} from": best, f"{standing.series} to": worst}
    for difference in result.differences:
        numbers[f"{difference.series} p"] = -1.0 if difference.p_holm is None else difference.p_holm
        numbers[f"{difference.series} detectable"] = difference.detectable or -1.0
    return numbers
