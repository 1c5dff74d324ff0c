"""Which tokens of a row are masked, and what stands in their place: numpy alone."""

from typing import Literal, NamedTuple

import numpy as np

from llmtrain.objectives.words import begins_word
from llmtrain.types import MASK, NO_DOC, Row, Vocab

Unit = Literal["token", "word"]


class Shares(NamedTuple):
    """Of the chosen tokens, how many become the mask and how many a random token; the others stay as they are."""

    mask: float
    random: float

    def counts(self, n: int) -> tuple[int, int]:
        """(masked, random) of ``n`` tokens, each rounded so that the two never exceed ``n`` together."""
        masked = round(self.mask * n)
        return masked, round((self.mask + self.random) * n) - masked


class Units(NamedTuple):
    """The tokens of a row that may be masked, in units that are chosen whole."""

    tokens: np.ndarray  # [M] their places in the row, ascending
    bounds: np.ndarray  # [U + 1] unit u is tokens[bounds[u]:bounds[u + 1]]
    stretch: np.ndarray  # [U] the first unit after u that does not follow on from it in the same document


def units_of(row: Row, vocab: Vocab, unit: Unit) -> Units:
    """Reserved ids and padding belong to no unit, and neither a word nor a stretch goes on beyond one.

    A word begins at a token that ``vocab.starts_word`` and, in Japanese, where the script changes (``words``); the
    first token of a row or a document begins one in any case.
    """
    free = (row.ids >= vocab.n_reserved) & (row.doc != NO_DOC)
    opens = np.ones(len(free), bool)  # whether nothing before the token is in its stretch
    opens[1:] = ~free[:-1] | (row.doc[1:] != row.doc[:-1])
    tokens = np.flatnonzero(free)
    opens = opens[tokens]
    begins = opens | begins_word(row.ids[tokens], vocab) | (unit == "token")
    first = np.flatnonzero(begins)
    ends = np.append(np.flatnonzero(opens[first]), len(first))  # of each stretch, but for a 0 before them
    stretch = ends[np.cumsum(opens[first])]
    return Units(tokens, np.append(first, len(tokens)), stretch)


def choose(units: Units, n: int, *, span: float, rng: np.random.Generator) -> np.ndarray:
    """The places of ``n`` tokens, or of all where there are fewer, ascending: whole units, spans of about ``span``.

    Units or spans are taken at random until they hold ``n`` tokens; of the last, only its first tokens are taken.
    """
    starts, ends = _singles(units, rng) if span == 1 else _spans(units, n, span, rng)
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    chosen = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
    return np.sort(units.tokens[chosen[:n]])


def _singles(units: Units, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(len(units.stretch))
    return units.bounds[order], units.bounds[order + 1]


def _spans(units: Units, n: int, span: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of spans that begin at random units and do not overlap (SpanBERT, Joshi et al. 2020).

    Lengths, in units, are geometric with mean ``span``, cut where a stretch ends or another span begins.
    """
    n_units = len(units.stretch)
    order = rng.permutation(n_units).tolist()
    lengths = rng.geometric(1 / span, n_units).tolist()
    bounds, stretch, taken = units.bounds.tolist(), units.stretch.tolist(), bytearray(n_units)
    found, left = [], n
    for first, length in zip(order, lengths, strict=True):
        if left <= 0:
            break
        if taken[first]:
            continue
        end = min(first + length, stretch[first])
        met = taken.find(1, first, end)
        end = end if met < 0 else met
        taken[first:end] = b"\1" * (end - first)
        found.append((bounds[first], bounds[end]))
        left -= bounds[end] - bounds[first]
    spans = np.array(found, dtype=np.int64).reshape(-1, 2)
    return spans[:, 0], spans[:, 1]


def corrupt(
    ids: np.ndarray, at: np.ndarray, shares: Shares, vocab: Vocab, rng: np.random.Generator
) -> np.ndarray:
    """A copy of ``ids`` in which the tokens ``at`` are masked, random ones or left, as many as ``shares`` says.

    Which is which is drawn token by token, within words and spans too. Random tokens are uniform over the real
    vocabulary, so that one may come out as it was.
    """
    masked, random = shares.counts(len(at))
    order = rng.permutation(at)
    out = ids.copy()
    out[order[:masked]] = MASK
    out[order[masked : masked + random]] = rng.integers(vocab.n_reserved, vocab.size, random)
    return out
