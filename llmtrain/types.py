"""The vocabulary every other module shares; it imports nothing of ours.

What is compiled makes tuples by their constructors: not all of torch's compilers trace ``_replace`` (its issue 158772).

Axes, everywhere: B rows, T positions, S source positions, D model width, H heads, K head width,
V vocabulary, E experts.
"""

from enum import Enum, IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Every vocabulary begins with the same reserved ids, so that objectives need no tokenizer.
PAD, BOS, MASK, UNK = range(4)
MODES = range(4, 8)  # UL2's mode tokens
FIM = range(8, 12)  # fill-in-the-middle: prefix, middle, suffix, spare
N_FIXED = 16  # 12-15 are spare; sentinels follow, `n_sentinels` of them, then the real vocabulary

IGNORE = -100  # a target that is not scored
NO_DOC = -1  # the document number of padding: never seen, pooled, routed or scored


class Visibility(Enum):
    """What an objective promises about ``Seq.prefix``, so that layers can be built for it."""

    CAUSAL = "causal"  # the prefix is empty
    PREFIX = "prefix"  # an initial segment of each document
    BIDIRECTIONAL = "bidirectional"  # the prefix is the whole document


ANY = frozenset(Visibility)


class Seq(NamedTuple):
    """A packed stream of tokens: several documents laid end to end in each row."""

    ids: Int[Tensor, "B T"]
    doc: Int[Tensor, "B T"]  # document number within the row, non-decreasing; NO_DOC is padding
    pos: Int[Tensor, "B T"]  # position within the document
    prefix: Bool[Tensor, "B T"]  # tokens that the whole of their document may see


class Routing(NamedTuple):
    """What the router of one MoE layer counted, summed over positions; losses are made of it elsewhere."""

    counts: Float[Tensor, " E"]  # tokens sent to each expert
    prob: Float[Tensor, " E"]  # the router's probability mass on each expert
    z: Float[Tensor, ""]  # squared log-partition of the router's logits


class Hidden(NamedTuple):
    h: Float[Tensor, "B T D"]
    routing: tuple[Routing, ...]  # one per MoE layer passed; () when dense


class Row(NamedTuple):
    """Raw tokens as the data give them: packed documents, before any objective."""

    ids: np.ndarray  # [L] int64
    doc: np.ndarray  # [L] int64, non-decreasing; NO_DOC marks padding at the end
    number: int = 0  # its address, for patterns and dropout: place in the run, or in the held-out rows


class Script(IntEnum):
    """What kind of character a token begins or ends with: where there are no spaces, its changes tell words."""

    SPACE = 0  # or no character at all
    LETTER = 1  # or a digit, of any alphabet
    KANJI = 2
    HIRAGANA = 3
    KATAKANA = 4
    SYMBOL = 5
    PART = 6  # bytes that are no whole character


class Vocab(NamedTuple):
    """What objectives and scores may know of a tokenizer: arrays over its ids."""

    size: int  # reserved ids included
    n_reserved: int  # the first ids, of which no text is made
    n_bytes: np.ndarray  # [V] int32: UTF-8 bytes of raw text that a token stands for; 0 for reserved ids
    starts_word: np.ndarray  # [V] bool
    ends_sentence: np.ndarray  # [V] bool
    scripts: np.ndarray | None = None  # [V, 2] uint8: Script of first and last character; None: no kana


def visible(q: Seq, k: Seq) -> Bool[Tensor, "B T S"]:
    """Position i sees position j iff both are in one document and j is not later than i, or j is in the prefix.

    This is the definition: every mixer and every kernel is tested against it. Padding is never seen.
    """
    same_doc = (q.doc[:, :, None] == k.doc[:, None, :]) & (k.doc != NO_DOC)[:, None, :]
    past = k.pos[:, None, :] <= q.pos[:, :, None]
    return same_doc & (past | k.prefix[:, None, :])
