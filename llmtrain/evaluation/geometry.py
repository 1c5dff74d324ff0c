"""The shape of representations: how many directions they use, and how alike those of two models are."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from llmtrain.evaluation.base import Measured
from llmtrain.evaluation.features import HEAD
from llmtrain.evaluation.readers import ModelReader
from llmtrain.evaluation.tasks import Input


def effective_rank(x: Float[np.ndarray, "N D"]) -> float:
    """Roy and Vetterli (2007): the exponential of the entropy of the singular values, shares of their sum.

    Of centred rows, since a mean that all share is no direction in which they differ. Between 1 and min(N - 1, D).
    """
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = values[values > 0] / values.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def cka_matrix(features: Mapping[str, Float[np.ndarray, "N _"]]) -> Float[np.ndarray, "M M"]:
    """Linear CKA (Kornblith et al. 2019) between models, of their features of the same texts, in their order.

    By the unbiased HSIC of Song et al. (2012), so that it is about 0 where nothing is shared: the biased form nears 1
    for any two models as widths near the number of texts. Needs four texts.
    """
    grams = [_without_diagonal(x) for x in features.values()]
    own = [np.sqrt(_hsic(k, k)) for k in grams]
    pairs = [
        [_hsic(k, m) / (a * b) for m, b in zip(grams, own, strict=True)]
        for k, a in zip(grams, own, strict=True)
    ]
    return np.array(pairs)


def top_features(reader: ModelReader, windows: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """The mean over each window at the last layer, as the head reads it."""
    inputs = [Input(window) for window in windows]
    found = reader.read(inputs, inputs)
    return found[
        max((p for p in found if p.pooling == "mean" and p.layer != HEAD), key=lambda p: int(p.layer))
    ]


def measured_geometry(reader: ModelReader, windows: Sequence[str]) -> list[Measured]:
    """The effective rank of the last layer: a description, which is not better where it is higher."""
    x = top_features(reader, windows)
    return [
        Measured(
            yardstick="effective_rank",
            kind="geometry",
            split="test",
            metric="effective rank",
            value=effective_rank(x.astype(np.float64)),
            better="higher",
            n=len(x),
            ceiling=float(min(len(x) - 1, x.shape[1])),
            summary=False,
            choices={"layer": "last", "pooling": "mean"},
            note="a description and no score",
        )
    ]


def _without_diagonal(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic(k: Float[np.ndarray, "N N"], m: Float[np.ndarray, "N N"]) -> float:
    """Unbiased, of Gram matrices without diagonals; the factor 1 / (N (N - 3)), which cancels, is left out."""
    n = len(k)
    ones = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((k * m).sum() + ones - 2 / (n - 2) * (k.sum(0) @ m.sum(0)))
