"""The kinds of noise that denoising takes back: each turns a packed row into a source and a target."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llmtrain.config import config
from llmtrain.objectives.corruption import (
    Streams,
    corrupt_spans,
    noise_count,
    noise_mask,
    plan,
    segment_starts,
    sizes_of,
    span_counts,
    terminated,
)
from llmtrain.objectives.infilling import corrupt_text, cut_ending, original, permute_sentences
from llmtrain.types import BOS, MASK, MODES, N_FIXED, NO_DOC, Row, Vocab

Mode = Literal["R", "S", "X"]


class Lengths(NamedTuple):
    source: int  # at most, and exactly where the noise removes a fixed number of tokens
    target: int  # with the terminator


@config
class Noise(ABC):
    """What is done to the raw tokens of a row. The first token of a source may say which noise it was (UL2)."""

    mode: Mode | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """The part of a score's name that tells this noise from others."""

    @abstractmethod
    def lengths(self, n: int) -> Lengths:
        """Of the streams that a full row of ``n`` raw tokens becomes, the mode left out; they grow with ``n``."""

    @abstractmethod
    def streams(self, row: Row, vocab: Vocab, rng: np.random.Generator) -> Streams:
        """The source and the target of a row, documents apart; shorter than ``lengths`` where the row is padded."""

    @abstractmethod
    def floor_nats(self, n: int, nats: float) -> float:
        """The least nats of all targets of a row of ``n`` raw tokens, one document, each token worth ``nats``."""

    @abstractmethod
    def cut_off(self, context: list[int]) -> tuple[list[int], list[int]]:
        """The source that lacks all that follows ``context``, and its target up to there."""

    def n_sentinels(self, n: int) -> int:
        """How many sentinels a row of ``n`` raw tokens needs."""
        return 0

    def ending(self, context: Sequence[int]) -> tuple[list[int], list[int]]:
        """``cut_off``, with the mode in the place of BOS, or in front where a document is gone on with."""
        source, known = self.cut_off(list(context))
        if self.mode is None:
            return source, known
        return [MODES["RSX".index(self.mode)], *source[int(source[0] == BOS) :]], known

    def moded(self, row: Row, vocab: Vocab, rng: np.random.Generator) -> Streams:
        """``streams``, in which the mode, if there is one, begins every document's source in the place of its BOS.

        A row's first document often goes on from the row before and has no BOS: there the mode is one token more.
        """
        found = self.streams(row, vocab, rng)
        if self.mode is None:
            return found
        token = MODES["RSX".index(self.mode)]
        doc = found.source_doc
        begins = np.append(True, doc[1:] != doc[:-1])
        source = np.where(begins & (found.source == BOS), token, found.source)
        if source[0] != token:
            source, doc = np.append(token, source), np.append(doc[0], doc)
        return found._replace(source=source, source_doc=doc)


@config
class SpanNoise(Noise):
    """T5's span corruption (Raffel et al. 2020): spans of ``mean`` tokens on average are taken out and told apart.

    Also the R and X denoisers of UL2 (Tay et al. 2022).
    """

    rate: float = 0.15  # of the raw tokens, exactly
    mean: float = 3.0  # tokens of a span

    def __post_init__(self) -> None:
        share("rate", self.rate)
        if self.mean < 1:
            raise ValueError(f"mean must be at least 1, got {self.mean}: a span holds a token")

    @property
    def name(self) -> str:
        return f"r{100 * self.rate:g}_m{self.mean:g}"

    def lengths(self, n: int) -> Lengths:
        _, noise, spans = span_counts(n, self.rate, self.mean)
        return Lengths(n - noise + spans, noise + spans + 1)

    def cut_off(self, context: list[int]) -> tuple[list[int], list[int]]:
        return [*context, N_FIXED], [N_FIXED]  # one span, the last

    def n_sentinels(self, n: int) -> int:
        return span_counts(n, self.rate, self.mean).spans

    def streams(self, row: Row, vocab: Vocab, rng: np.random.Generator) -> Streams:
        ids, doc = real(row)
        starts = segment_starts(ids, doc)
        n, noise, spans = plan(
            starts,
            span_counts(len(ids), self.rate, self.mean),
            most_spans=vocab.n_reserved - N_FIXED,
            rate=self.rate,
            mean=self.mean,
        )
        taken = noise_mask(sizes_of(starts, n), noise, spans, rng)
        return corrupt_spans(ids[:n], doc[:n], taken)

    def floor_nats(self, n: int, nats: float) -> float:
        """Sentinels and the terminator are known once it is known where the spans end.

        The source shows how many spans there are and the row's length how many tokens they hold, but not how these
        are shared out: all C(noise - 1, spans - 1) ways are alike, and the tokens say nothing of them.
        """
        _, noise, spans = span_counts(n, self.rate, self.mean)
        return noise * nats + math.log(math.comb(noise - 1, spans - 1))


@config
class SuffixNoise(Noise):
    """The end of every document from its beginning: UL2's S denoiser."""

    rate: float = 0.25  # of the raw tokens, exactly

    def __post_init__(self) -> None:
        share("rate", self.rate)

    @property
    def name(self) -> str:
        return f"suffix_r{100 * self.rate:g}"

    def lengths(self, n: int) -> Lengths:
        noise = noise_count(n, self.rate)
        return Lengths(n - noise, noise + 1)

    def cut_off(self, context: list[int]) -> tuple[list[int], list[int]]:
        return context, []

    def streams(self, row: Row, vocab: Vocab, rng: np.random.Generator) -> Streams:
        ids, doc = real(row)
        documents = 1 + np.cumsum(np.diff(doc, prepend=doc[:1]) != 0)  # in the first 1, 2, ... tokens
        longest = self.lengths(len(ids)).source
        for n in range(len(ids), 0, -1):  # once, unless most documents are of one token, which have no ending
            noise = min(noise_count(n, self.rate), n - int(documents[n - 1]))
            if n - noise <= longest:
                break
        return cut_ending(ids[:n], doc[:n], noise, rng)

    def floor_nats(self, n: int, nats: float) -> float:
        """Every token counts, and nothing else: where the target ends is known from the row's length."""
        return nats * noise_count(n, self.rate)


@config
class BartNoise(Noise):
    """BART's corruptions (Lewis et al. 2020), each as much as wanted; the target is the text as it was.

    Text infilling puts one MASK for a span whose length is drawn from Poisson(mean), also for spans of no token.
    Tokens that are deleted leave no trace. Sentences (as far as single tokens tell where they end) are shuffled within
    their document, before the rest.
    """

    infill: float = 0.3  # share of the tokens that spans cover, exactly
    mean: float = 3.0  # tokens of a span
    delete: float = 0.0  # share of the tokens that are deleted, exactly
    permute_sentences: bool = True

    def __post_init__(self) -> None:
        if self.mean <= 0:
            raise ValueError(f"mean must be positive, got {self.mean}")
        for name in ("infill", "delete"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.infill + self.delete >= 1:
            raise ValueError(
                f"infill={self.infill} and delete={self.delete} leave no token: lower one of them"
            )
        if not (self.infill or self.delete or self.permute_sentences):
            raise ValueError("nothing is corrupted: set infill, delete or permute_sentences")

    @property
    def name(self) -> str:
        parts = [f"r{100 * self.infill:g}_m{self.mean:g}"] if self.infill else []
        parts += [f"d{100 * self.delete:g}"] if self.delete else []
        parts += ["permuted"] if self.permute_sentences else []
        return "_".join(["bart", *parts])

    def lengths(self, n: int) -> Lengths:
        return Lengths(n, n)

    def cut_off(self, context: list[int]) -> tuple[list[int], list[int]]:
        return [*context, MASK], context[int(context[0] == BOS) :]  # the target is the whole text

    def counts(self, n: int) -> tuple[int, int]:
        """How many of ``n`` tokens (no BOS among them) are in spans, and how many are deleted: never all."""
        masked = min(round(n * self.infill), n)
        return masked, max(0, min(round(n * self.delete), n - masked - 1))

    def streams(self, row: Row, vocab: Vocab, rng: np.random.Generator) -> Streams:
        ids, doc = real(row)
        # BOS in front is no target: a row without one gives up its last token, so that both have as many targets
        n = min(len(ids), max(1, len(row.ids) - (ids[0] != BOS)))
        ids, doc = ids[:n], doc[:n]
        target = original(ids, doc)
        if self.permute_sentences:
            ids = ids[permute_sentences(ids, doc, vocab.ends_sentence, rng)]
        masked, deleted = self.counts(int(np.count_nonzero(ids != BOS)))
        source = corrupt_text(ids, doc, masked=masked, deleted=deleted, mean=self.mean, rng=rng)
        return terminated(Streams(*source, *target))

    def floor_nats(self, n: int, nats: float) -> float:
        """Of the tokens that are gone, were it known where they stood: a bound that nobody reaches.

        H(text | source) >= H(text | source, what was done to it), and given that, the tokens which are left say
        nothing of those which are not. What the lengths of the spans, the places of deleted tokens and the order of
        sentences are worth comes on top; it has no closed form, since different ways can make the same source.
        """
        return nats * sum(self.counts(n - 1))


def real(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The ids and documents of a row without its padding."""
    n = int(np.count_nonzero(row.doc != NO_DOC))
    return row.ids[:n], row.doc[:n]


def share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(
            f"{name} must be between 0 and 1, got {value}: the share of tokens that are taken out"
        )
