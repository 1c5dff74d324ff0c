"""What a likelihood must beat: all tokens alike, and tokens by how often they are."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.likelihood import Answer, Ask, Likelihood
from llmtrain.types import BOS, UNK


class Uniform(Likelihood):
    """Every id is as likely as any other, whatever stands before: a text is as unlikely as it is long in tokens."""

    def __init__(self, vocab_size: int) -> None:
        self._nats = math.log(vocab_size)

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        return [Answer(np.full(len(ask.continuation), self._nats), greedy=False) for ask in asks]


class Unigram(Likelihood):
    """Every token by its frequency in other texts, whatever stands before."""

    def __init__(self, nats: Float[np.ndarray, " V"]) -> None:
        self._nats = nats

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        found = [self._nats[list(ask.continuation)] for ask in asks]
        least = self._nats.min()
        return [Answer(nats, greedy=bool((nats == least).all())) for nats in found]


def unigram(tokenizer: Tokenizer, texts: Sequence[str]) -> Unigram:
    """Of the tokens of ``texts`` and a BOS for each; every token of text counts once more (Laplace)."""
    counts = np.zeros(tokenizer.vocab_size)
    counts[tokenizer.n_reserved :] = 1
    counts[[BOS, UNK]] = len(texts) + 1, 1
    for ids in tokenizer.encode_batch(texts):
        np.add.at(counts, ids, 1)
    # reserved ids that no text becomes are impossible
    return Unigram(np.log(counts.sum()) - np.log(counts, where=counts > 0, out=np.full_like(counts, -np.inf)))
