"""Graded similarity: whether pairs that people find alike have a higher cosine."""

import numpy as np
from jaxtyping import Float, Int

from llmtrain.evaluation.base import Measured
from llmtrain.evaluation.cosine import Choice, paired_cosines, scaled_sides, sides
from llmtrain.evaluation.readers import Reader
from llmtrain.evaluation.standard_errors import resampled_error
from llmtrain.evaluation.tasks import Similarity


def grade(task: Similarity, reader: Reader) -> list[Measured]:
    """Spearman's rank correlation on test, at the layer, pooling and scaling of the best on dev."""
    dev, test = sides(reader, task.dev), sides(reader, task.test)
    given = {
        name: np.array([p.score for p in part]) for name, part in (("dev", task.dev), ("test", task.test))
    }
    on_dev = {c: spearman(paired_cosines(both), given["dev"]) for c, both in scaled_sides(dev, dev, reader)}
    best = {s: max((c for c in on_dev if c.scaling == s), key=lambda c: on_dev[c]) for s in reader.scalings}
    found = {c: paired_cosines(both) for c, both in scaled_sides(dev, test, reader) if c in best.values()}
    chosen = max(best.values(), key=lambda c: on_dev[c])
    rows = [_row(task, found[chosen], given["test"], chosen)]
    if len(best) > 1:
        for scaling, choice in best.items():
            row = _row(task, found[choice], given["test"], choice)
            rows.append(row._replace(metric=f"spearman, {scaling}", summary=False))
    return rows


def _row(
    task: Similarity, x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], choice: Choice
) -> Measured:
    def statistic(i: Int[np.ndarray, " k"]) -> float:
        return spearman(x[i], y[i])

    return Measured(
        yardstick=f"similarity_{task.name}",
        kind="features",
        split="test",
        metric="spearman",
        value=spearman(x, y),
        better="higher",
        n=len(x),
        item_se=resampled_error(statistic, [p.group for p in task.test]),
        groups=len({p.group for p in task.test}),
        chance=0.0,
        ceiling=1.0,
        summary=task.summary,
        choices=choice.listed,
        note=task.note,
    )


def spearman(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    """Of ranks, ties sharing theirs; 0 where one side is constant, which orders nothing."""
    from scipy.stats import rankdata

    a, b = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else 0.0
