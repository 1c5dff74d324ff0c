"""BART's corruptions in plain numpy: text infilling, token deletion, sentence permutation; and UL2's cut-off ending."""

import numpy as np

from llmtrain.objectives.corruption import Streams, segment_starts, sizes_of, spread, terminated
from llmtrain.types import BOS, MASK


def poisson_lengths(total: int, mean: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Lengths of spans ~ Poisson(mean), drawn until they add up to ``total`` (the last one cut to fit).

    Returns those that are not zero, and how many were: never so many that there are more spans than tokens.
    """
    draws = np.zeros(0, np.int64)
    while draws.sum() < total:
        draws = np.append(draws, rng.poisson(mean, max(8, round(1.5 * (total - draws.sum()) / mean))))
    ends = np.cumsum(draws)
    used = int(np.searchsorted(ends, total)) + 1 if total else 0
    lengths = np.diff(np.minimum(ends[:used], total), prepend=0)
    spans = lengths[lengths > 0]
    return spans, min(used - len(spans), total - len(spans))


def place(n: int, lengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Spans of those lengths at random among ``n`` tokens; they may touch, but not overlap.

    Returns which tokens they cover [n] and which of these begin one [n].
    """
    order = rng.permutation(lengths)
    gaps = np.sort(rng.integers(0, n - lengths.sum() + 1, len(order)))  # tokens left alone before each span
    begins = gaps + np.cumsum(order) - order
    covered, first = np.zeros(n, bool), np.zeros(n, bool)
    first[begins] = True
    covered[np.repeat(begins - np.cumsum(order) + order, order) + np.arange(order.sum())] = True
    return covered, first


def permute_sentences(
    ids: np.ndarray, doc: np.ndarray, ends_sentence: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The order in which the sentences of each segment come after a shuffle: indices [n]; BOS stays in front."""
    starts = segment_starts(ids, doc)
    segment = np.repeat(np.arange(len(starts)), sizes_of(starts, len(ids)))
    is_bos = ids == BOS
    begins = np.append(True, ends_sentence[ids[:-1]] | is_bos[:-1])
    begins[starts] = True
    sentence = np.cumsum(begins) - 1
    key = rng.random(sentence[-1] + 1)
    return np.lexsort((np.arange(len(ids)), np.where(is_bos, -1.0, key[sentence]), segment))


def corrupt_text(
    ids: np.ndarray,
    doc: np.ndarray,
    *,
    masked: int,
    deleted: int,
    mean: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The source and its documents: ``masked`` tokens in spans that are one MASK each, and ``deleted`` that are gone.

    A span that goes on into another document, or over a BOS, is two. Spans of no token put a MASK in between.
    """
    free = np.flatnonzero(ids != BOS)
    lengths, empty = poisson_lengths(masked, mean, rng)
    covered, first = place(len(free), lengths, rng)
    joined = np.append(False, (np.diff(free) == 1) & (doc[free[1:]] == doc[free[:-1]]))
    first |= covered & ~joined
    empty = min(empty, masked - int(first.sum()))
    kept = np.ones(len(ids), bool)
    kept[free[covered & ~first]] = False
    kept[rng.choice(free[~covered], deleted, replace=False)] = False
    out = ids.copy()
    out[free[first]] = MASK
    source, source_doc = out[kept], doc[kept]
    # a MASK for nothing goes behind any token of the source, and so into that token's document
    behind = rng.integers(0, len(source), empty)
    return np.insert(source, behind + 1, MASK), np.insert(source_doc, behind + 1, source_doc[behind])


def original(ids: np.ndarray, doc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The text as targets: the row without a BOS in front, and the BOS of a document as the end of the one before."""
    skip = int(ids[0] == BOS)
    target, target_doc = ids[skip:], doc[skip:].copy()
    ends = np.flatnonzero((ids[1:] == BOS) & (doc[1:] != doc[:-1])) + 1
    target_doc[ends - skip] = doc[ends - 1]
    return target, target_doc


def cut_ending(ids: np.ndarray, doc: np.ndarray, n_target: int, rng: np.random.Generator) -> Streams:
    """The end of each document as its target, ``n_target`` tokens in all, shared out by size; a document keeps one."""
    starts = np.flatnonzero(np.append(True, doc[1:] != doc[:-1]))
    sizes = sizes_of(starts, len(ids))
    own = spread(n_target, sizes - 1, np.zeros_like(sizes), sizes - 1, rng)
    ending = np.arange(len(ids)) >= np.repeat(starts + sizes - own, sizes)
    return terminated(Streams(ids[~ending], doc[~ending], ids[ending], doc[ending]))
