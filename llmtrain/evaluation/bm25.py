"""BM25, the baseline of retrieval by words (Robertson and Zaragoza 2009)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from llmtrain.evaluation.words import words

_K1, _B = 1.2, 0.75  # the usual saturation of counts, and share of the length's effect


def bm25(queries: Sequence[str], targets: Sequence[str]) -> Float[np.ndarray, "Q N"]:
    """The score of every target for every query, a word of a query counting as often as it is there."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectoriser = CountVectorizer(analyzer=words)
    counts = vectoriser.fit_transform(targets).astype(np.float64).tocoo()
    n, _ = counts.shape
    length = np.bincount(counts.row, weights=counts.data, minlength=n)
    held = np.bincount(counts.col, minlength=counts.shape[1])  # targets that have a word
    idf = np.log1p((n - held + 0.5) / (held + 0.5))
    norm = _K1 * (1 - _B + _B * length / length.mean())
    counts.data = idf[counts.col] * counts.data * (_K1 + 1) / (counts.data + norm[counts.row])
    found: np.ndarray = (vectoriser.transform(queries) @ counts.tocsr().T).toarray()
    return found
