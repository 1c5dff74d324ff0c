"""Who gives texts vectors: a model, or one of the baselines that stand beside it in every table."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from llmtrain import philox
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.feature_settings import Pooling
from llmtrain.evaluation.features import Features, Place, span_features, text_features
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.tasks import Input
from llmtrain.evaluation.words import words

Scaling = Literal["raw", "standardised"]


class Reader(ABC):
    """Vectors of texts, or of parts of texts, at one place or more, to be chosen from on dev."""

    scalings: tuple[Scaling, ...] = ("raw", "standardised")

    @abstractmethod
    def read(self, inputs: Sequence[Input], known: Sequence[Input]) -> dict[Place, Any]:
        """[N D] arrays, or sparse matrices, by place.

        ``known`` are inputs whose statistics may be used, those of a probe's training part or of what is searched.
        """


class ModelReader(Reader):
    """A model's layers; the same inputs are read once, however often they are asked for."""

    def __init__(self, subject: Subject, poolings: tuple[Pooling, ...]) -> None:
        self._subject, self._poolings = subject, poolings
        self._known: dict[tuple[Input, ...], Features] = {}

    def read(self, inputs: Sequence[Input], known: Sequence[Input]) -> Features:
        key = tuple(inputs)
        if key not in self._known:
            self._known[key] = (
                text_features(self._subject, [one.text for one in inputs], self._poolings)
                if inputs[0].span is None
                else span_features(self._subject, inputs)
            )
        return self._known[key]


class RandomVectors(Reader):
    """One normal vector a token, of the width of the models, and the mean of those of a text."""

    def __init__(self, tokenizer: Tokenizer, width: int, seed: int = 0) -> None:
        self._tokenizer = tokenizer
        rng = philox.generator(seed, "random token vectors")
        self._table = rng.standard_normal((tokenizer.vocab_size, width), dtype=np.float32)

    def read(self, inputs: Sequence[Input], known: Sequence[Input]) -> Features:
        ids = self._tokenizer.encode_batch([part(one) for one in inputs])
        return {Place("tokens", "mean"): np.stack([self._mean(row) for row in ids])}

    def _mean(self, ids: np.ndarray) -> Float[np.ndarray, " D"]:
        return self._table[ids].mean(0) if len(ids) else np.zeros(self._table.shape[1], np.float32)


class TfIdf(Reader):
    """Counts of words, weighted by how rare they are among the known texts."""

    scalings = ("raw",)

    def read(self, inputs: Sequence[Input], known: Sequence[Input]) -> dict[Place, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(analyzer=words, sublinear_tf=True)
        vectoriser.fit([part(one) for one in known])
        return {Place("words", "tf-idf"): vectoriser.transform([part(one) for one in inputs])}


class Unigrams(Reader):
    """How often each known token stands in a text; of a part of a text, which known word it is."""

    scalings = ("raw",)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def read(self, inputs: Sequence[Input], known: Sequence[Input]) -> dict[Place, Any]:
        from sklearn.feature_extraction.text import CountVectorizer

        vectoriser = CountVectorizer(analyzer=self._units)
        vectoriser.fit(known)
        return {Place("tokens", "counts"): vectoriser.transform(inputs).astype(np.float64)}

    def _units(self, one: Input) -> list[str]:
        if one.span is not None:
            return [part(one)]
        return list(map(str, self._tokenizer.encode(one.text).tolist()))


class Length(Reader):
    """The logarithm of the length in bytes, as an angle, so that cosines fall as lengths differ."""

    scalings = ("raw",)

    def read(self, inputs: Sequence[Input], known: Sequence[Input]) -> Features:
        angle = np.array([np.log1p(len(part(one).encode())) for one in inputs]) / 16  # under a right angle
        return {Place("bytes", "length"): np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)}


def moments(x: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Mean and standard deviation of each feature; infinite of one that is constant but for rounding."""
    mean, sd = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return mean, np.where(sd > 1e-5 * np.abs(mean), sd, np.inf)


def part(one: Input) -> str:
    """What is asked about, without its context."""
    return one.text if one.span is None else one.text[slice(*one.span)]
