"""Retrieval: the partner of a text among the partners of all others, by the cosine of frozen features."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from llmtrain.evaluation.base import Items, Measured
from llmtrain.evaluation.cosine import Choice, cosines, scaled_sides, sides
from llmtrain.evaluation.readers import Reader
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.evaluation.tasks import Retrieval

Scores = Float[np.ndarray, "N N"]  # of each second text for each first; the partner of the i-th is the i-th


def retrieve(task: Retrieval, reader: Reader) -> list[Measured]:
    """Recall@1 and the mean reciprocal rank on test, at the layer, pooling and scaling of the best rank on dev."""
    dev, test = sides(reader, task.dev), sides(reader, task.test)
    on_dev = {
        choice: float(reciprocal_ranks(cosines(both)).mean())
        for choice, both in scaled_sides(dev, dev, reader)
    }
    best = {s: max((c for c in on_dev if c.scaling == s), key=lambda c: on_dev[c]) for s in reader.scalings}
    of = {
        choice: cosines(both) for choice, both in scaled_sides(dev, test, reader) if choice in best.values()
    }
    chosen = max(best.values(), key=lambda c: on_dev[c])
    rows = ranked(task, of[chosen], chosen)
    if len(best) > 1:
        for scaling, choice in best.items():
            row = ranked(task, of[choice], choice)[0]
            rows.append(row._replace(metric=f"{row.metric}, {scaling}", summary=False))
    return rows


def retrieve_by(task: Retrieval, scores: Callable[[Sequence[str], Sequence[str]], Scores]) -> list[Measured]:
    """The same of what scores texts by themselves."""
    return ranked(task, scores([p.first for p in task.test], [p.second for p in task.test]), None)


def ranked(task: Retrieval, scores: Scores, choice: Choice | None) -> list[Measured]:
    n = len(scores)
    harmonic = float((1 / np.arange(1, n + 1)).mean())
    ids, groups = tuple(p.id for p in task.test), tuple(p.group for p in task.test)

    def row(metric: str, values: Float[np.ndarray, " N"], chance: float) -> Measured:
        items = Items(ids, groups, values)
        return Measured(
            yardstick=f"retrieval_{task.name}",
            kind="features",
            split="test",
            metric=metric,
            value=float(values.mean()),
            better="higher",
            n=n,
            items=items,
            item_se=standard_error(items),
            chance=chance,
            ceiling=1.0,
            summary=task.summary,
            choices={} if choice is None else choice.listed,
            note="; ".join(filter(None, (task.note, f"among {n}"))),
        )

    return [
        row("recall@1", hits(scores), 1 / n),
        row("mrr", reciprocal_ranks(scores), harmonic),
    ]


def hits(scores: Scores) -> Float[np.ndarray, " N"]:
    """Whether the partner comes first; one of k that come first together, 1 / k."""
    above, level = _places(scores)
    return np.where(above == 0, 1 / (level + 1), 0.0)


def reciprocal_ranks(scores: Scores) -> Float[np.ndarray, " N"]:
    """Of the partner; among those of its own score, the mean over all orders."""
    above, level = _places(scores)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(scores) + 1))])
    return (harmonic[above + level + 1] - harmonic[above]) / (level + 1)


def _places(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """How many others score above each partner, and how many the same."""
    own = scores.diagonal()[:, None]
    return (scores > own).sum(1), (scores == own).sum(1) - 1
