"""Suffix bits per byte: the second half of held-out texts given the first, the column that all objectives share."""

from collections.abc import Sequence

import numpy as np

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Items, Measured
from llmtrain.evaluation.baselines import Uniform
from llmtrain.evaluation.likelihood import Answer, Likelihood
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.evaluation.windows import Window, asks, items_of


def suffix(likelihood: Likelihood, tokenizer: Tokenizer, found: Sequence[Window]) -> Measured:
    """Nats of the second halves, BOS where a document ends included, over their bytes without it."""
    asked = asks(found, tokenizer, ends=likelihood.ends)
    answers = likelihood.answer(asked)
    items = bits_per_byte(found, answers)
    chance = bits_per_byte(found, Uniform(tokenizer.vocab_size).answer(asked))
    cut = sum(answer.cut > 0 for answer in answers)
    notes = [likelihood.note, f"{cut} of {len(found)} contexts were cut to seq_len" if cut else ""]
    return Measured(
        yardstick="suffix_bits_per_byte",
        kind="generation",
        split="test",
        metric="bits per byte",
        value=ratio(items),
        better="lower",
        n=len(found),
        items=items,
        item_se=standard_error(items),
        chance=ratio(chance),
        note="; ".join(filter(None, notes)),
    )


def bits_per_byte(found: Sequence[Window], answers: Sequence[Answer]) -> Items:
    """Of each window, weighted by its bytes."""
    n_bytes = np.array([len(window.asked.encode()) for window in found], np.float64)
    return items_of(found, np.array([answer.nats.sum() for answer in answers]), n_bytes)


def ratio(items: Items) -> float:
    """The mean of the items by their weights."""
    return float(np.average(items.value, weights=items.weight))
