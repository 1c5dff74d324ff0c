"""Cloze: which of a hundred endings, alike in length and frequency, does the model hold for the true one?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Items, Measured
from llmtrain.evaluation.endings import Cloze, candidate_ids
from llmtrain.evaluation.likelihood import Ask, Likelihood
from llmtrain.evaluation.proportions import wilson
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.types import BOS

TIE = 1e-6  # nats: sums over as many tokens of a model that knows nothing differ by rounding


def cloze(likelihood: Likelihood, tokenizer: Tokenizer, found: Sequence[Cloze]) -> list[Measured]:
    """How often the true ending is the likeliest, and the mean of one over its rank; those tied with it share ranks."""
    contexts = tokenizer.encode_batch([item.given for item in found])
    asks = [
        Ask(((BOS,) if item.begins else ()) + tuple(context.tolist()), ids)
        for item, context in zip(found, contexts, strict=True)
        for ids in candidate_ids(item, tokenizer)
    ]
    nats = np.array([answer.nats.sum() for answer in likelihood.answer(asks)])
    sizes = [len(item.candidates) for item in found]
    scores = np.split(nats, np.cumsum(sizes)[:-1])
    chances = [1 / np.arange(1, n + 1) for n in sizes]
    return [
        _measured("accuracy", found, [best(s) for s in scores], [c[-1] for c in chances], likelihood.note),
        _measured(
            "mrr", found, [reciprocal_rank(s) for s in scores], [c.mean() for c in chances], likelihood.note
        ),
    ]


def best(nats: Float[np.ndarray, " n"]) -> float:
    """Whether the first is the least, as the share that it has among those tied with it."""
    return float(not (nats < nats[0] - TIE).any()) / int((nats <= nats[0] + TIE).sum())


def reciprocal_rank(nats: Float[np.ndarray, " n"]) -> float:
    """Of the first, the mean over the ranks that those tied with it share."""
    before, upto = int((nats < nats[0] - TIE).sum()), int((nats <= nats[0] + TIE).sum())
    return float((1 / np.arange(before + 1, upto + 1)).mean())


def _measured(
    metric: str, found: Sequence[Cloze], values: list[float], chances: list[float], note: str
) -> Measured:
    items = Items(tuple(i.id for i in found), tuple(i.file for i in found), np.array(values, np.float64))
    return Measured(
        yardstick="cloze",
        kind="generation",
        split="test",
        metric=metric,
        value=float(items.value.mean()),
        better="higher",
        n=len(found),
        items=items,
        item_se=standard_error(items),
        interval=wilson(float(items.value.mean()), len(found)) if metric == "accuracy" else None,
        chance=float(np.mean(chances)),
        ceiling=1.0,
        note=note,
    )
