"""Which items of a yardstick share text with what was trained on: they are dropped, and counted."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64

from llmtrain.data.shards import Shards
from llmtrain.data.tokenizers.base import Tokenizer

LENGTH = 50  # characters of a window
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_FILTER_BITS = 24
_BLOCK = 1 << 20  # characters that are hashed at a time
_SPACE = re.compile(r"\s+")


class Overlap(NamedTuple):
    """The windows that items share with the training text."""

    hashes: UInt64[np.ndarray, " n"]  # sorted

    def hits(self, text: str) -> bool:
        """Whether any ``LENGTH`` characters of ``text`` stand in the training text; never where it has fewer."""
        return bool(_found(self.hashes, _windows(normal(text))).any())


def shared(items: Iterable[str], training: Iterable[str]) -> Overlap:
    """What ``items`` share with ``training``, which is read once and never held in memory.

    Texts are compared by all windows of 50 characters, after NFC, and with every run of white space as one space, so
    that indentation and line ends do not tell a copy from its original. Two different windows have the same hash with
    probability 2^-64.
    """
    own = np.unique(np.concatenate([np.zeros(0, np.uint64), *(_windows(normal(text)) for text in items)]))
    maybe = np.zeros(1 << _FILTER_BITS, bool)  # most windows of the training text are ruled out by it at once
    maybe[_low(own)] = True
    found = np.zeros(len(own), bool)
    for text in _joined(training):
        theirs = _windows(text)
        theirs = theirs[maybe[_low(theirs)]]
        there = theirs[_found(own, theirs)]
        found[np.searchsorted(own, there)] = True
    return Overlap(own[found])


def training_texts(shards: Shards, tokenizer: Tokenizer) -> Iterator[str]:
    """The documents of prepared shards as text again."""
    for start, end in zip(shards.offsets[:-1], shards.offsets[1:], strict=True):
        yield tokenizer.decode(shards.tokens[start:end])


def normal(text: str) -> str:
    return _SPACE.sub(" ", unicodedata.normalize("NFC", text))


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Normal texts in blocks that neither are tiny nor cut a window."""
    held, size = [], 0
    for text in texts:
        given = normal(text)
        for at in range(0, len(given), _BLOCK):  # parts of a long one overlap by a window
            held.append(given[at : at + _BLOCK + LENGTH - 1])
            size += len(held[-1])
            if size >= _BLOCK:
                yield "\0".join(held)  # no window across it is in any text
                held, size = [], 0
    yield "\0".join(held)


def _found(known: UInt64[np.ndarray, " k"], hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which hashes are among the known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[at] == hashes


def _low(hashes: UInt64[np.ndarray, " n"]) -> np.ndarray:
    return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


def _windows(text: str) -> UInt64[np.ndarray, " n"]:
    """A polynomial hash, modulo 2^64, of every window of ``LENGTH`` characters, each character scrambled first.

    The scrambling (the finaliser of splitmix64) is what keeps the regular texts apart on which polynomials fail.
    """
    if len(text) < LENGTH:
        return np.zeros(0, np.uint64)
    x = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    x = (x + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(29)
    powers, inverses = _powers(_BASE, len(x)), _powers(_BASE_INVERSE, len(x))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(x * powers)])
    hashes = (sums[LENGTH:] - sums[:-LENGTH]) * inverses[: len(x) - LENGTH + 1]
    return hashes ^ (hashes >> np.uint64(32))


def _powers(base: int, n: int) -> UInt64[np.ndarray, " n"]:
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
