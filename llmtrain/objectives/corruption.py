"""Span corruption in plain numpy: which tokens of a packed row are taken out, and what the two streams then hold."""

from typing import NamedTuple

import numpy as np

from llmtrain.types import BOS, N_FIXED

_NEAR = 1e-6  # a share this near to a whole number is one


class Streams(NamedTuple):
    """A row as a question and its answer, document by document: both carry the same document numbers."""

    source: np.ndarray  # [S] ids
    source_doc: np.ndarray  # [S]
    target: np.ndarray  # [T] ids, which end with the terminator
    target_doc: np.ndarray  # [T]


class Plan(NamedTuple):
    """How much of a row is used, and how much of that is noise."""

    raw: int
    noise: int
    spans: int


def noise_count(n: int, rate: float) -> int:
    """How many of ``n`` tokens are taken out: the share, but at least one, and never all."""
    return min(max(1, round(n * rate)), n - 1)


def span_counts(n: int, rate: float, mean: float) -> Plan:
    """Noise tokens and spans of ``n`` tokens: T5's numbers (Raffel et al. 2020), which do not vary from row to row."""
    noise = noise_count(n, rate)
    return Plan(n, noise, min(max(1, round(noise / mean)), n - noise) if noise else 0)


def segment_starts(ids: np.ndarray, doc: np.ndarray) -> np.ndarray:
    """Where a document begins, or a BOS stands within one (rows whose documents are not kept apart)."""
    starts = ids == BOS
    starts[0] = True
    starts[1:] |= doc[1:] != doc[:-1]
    return np.flatnonzero(starts)


def sizes_of(starts: np.ndarray, n: int) -> np.ndarray:
    """The lengths of the segments that begin at ``starts``, of which the first ``n`` tokens are used."""
    within = starts[starts < n]
    return np.append(within[1:], n) - within


def most_noise(sizes: np.ndarray, spans: int) -> int:
    """The most tokens that ``spans`` spans can take out of segments, each of them after a token that is kept."""
    roomy = np.sort(sizes[sizes > 1])[::-1]
    return int(roomy[:spans].sum()) - spans


def plan(starts: np.ndarray, wanted: Plan, *, most_spans: int, rate: float, mean: float) -> Plan:
    """What can be taken out of a row whose segments begin at ``starts``: ``wanted`` itself, where it fits.

    Where the documents are too short for spans of that length, each span more costs one token of noise and two of the
    row's end: neither stream changes its length. Where they are so short that this fails too, as many tokens as can
    be are noise, and the end of the row is dropped until the source is no longer than it was to be.
    """
    n, noise, spans = wanted
    for more in range(min((noise - spans) // 2, most_spans - spans) + 1):
        found = Plan(n - 2 * more, noise - more, spans + more)
        sizes = sizes_of(starts, found.raw)
        if found.spans <= (sizes // 2).sum() and found.noise <= most_noise(sizes, found.spans):
            return found
    for raw in range(n, 0, -1):
        sizes = sizes_of(starts, raw)
        _, less, fewer = span_counts(raw, rate, mean)
        fewer = min(fewer, int((sizes // 2).sum()), most_spans)
        less = min(less, most_noise(sizes, fewer)) if fewer else 0
        if raw - less + fewer <= n - noise + spans:
            return Plan(raw, less, fewer)
    raise AssertionError("a row of one token always fits")


def spread(
    total: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """``total`` as whole numbers between ``low`` and ``high``, as nearly in proportion to ``weights`` as can be.

    Each is its exact share rounded down or up at random, without bias: systematic sampling (Madow 1949).
    """
    share = weights * (total / max(1, weights.sum()))
    if (share < low).any() or (share > high).any():
        share = bounded(total, weights, low, high)
    whole = np.floor(share + _NEAR)
    part = np.where(share - whole < _NEAR, 0.0, share - whole)
    rest = total - whole.sum()
    ends = np.cumsum(part)
    ends[ends > rest - _NEAR / 10] = rest
    steps = np.floor(ends + rng.random())
    whole += steps
    whole[1:] -= steps[:-1]
    return whole.astype(np.int64)


def bounded(total: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Shares of ``total`` in proportion to ``weights``, but for those that ``low`` or ``high`` holds."""
    share = low.astype(np.float64)
    some = weights > 0
    w, least, most = weights[some], low[some], high[some]
    # clip(x w, least, most) grows with x, and its sum in straight pieces between these points
    points = np.sort(np.concatenate((least / w, most / w)))
    sums = np.clip(points[:, None] * w, least, most).sum(1)
    share[some] = np.clip(np.interp(total - share[~some].sum(), sums, points) * w, least, most)
    return share


def partition(totals: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each of ``totals`` cut into so many ``parts``, none of them empty, all ways alike: the lengths end to end."""
    owner = np.repeat(np.arange(len(totals)), totals)
    firsts = np.cumsum(totals) - totals
    key = owner + 0.5 * rng.random(len(owner))  # of half a step, so that rounding keeps the owners apart
    key[firsts[totals > 0]] -= 0.5  # a part begins at the first token in any case
    order = np.argsort(key)
    rank = np.arange(len(owner)) - firsts[owner]  # alike in this order, which keeps the owners together
    begins = np.sort(order[rank < parts[owner]])
    return sizes_of(begins, len(owner))


def assign(
    sizes: np.ndarray, noise: int, spans: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How many noise tokens and spans each segment has: spans by its size, tokens by its spans."""
    none, pairs = np.zeros_like(sizes), sizes // 2
    for _ in range(8):
        own = spread(spans, sizes - 1, none, pairs, rng)
        most = np.where(own > 0, sizes - own, 0)
        if most.sum() >= noise:
            break
    else:  # long spans, and hardly a document that holds one: the largest do
        largest = np.argsort(-sizes, kind="stable")[: min(spans, np.count_nonzero(pairs))]
        least = none.copy()
        least[largest] = 1
        own = spread(spans, sizes - 1, least, pairs, rng)
        most = np.where(own > 0, sizes - own, 0)
    return spread(noise, own, own, most, rng), own


def noise_mask(sizes: np.ndarray, noise: int, spans: int, rng: np.random.Generator) -> np.ndarray:
    """Which tokens are noise: in every segment kept and noise take turns, and the first token is kept.

    So no span is cut by a segment, and none takes a BOS. Within a segment both are random partitions. In T5 the last
    part is always noise, so that a single span is always the end of the text; here a last part may be kept as well.
    """
    if not spans:
        return np.zeros(sizes.sum(), bool)
    tokens, own = assign(sizes, noise, spans, rng)
    some = (own > 0).astype(np.int64)
    kept = partition(sizes - tokens + some, own + 1, rng)
    last = np.cumsum(own + 1) - 1
    kept[last] -= some  # only this one may be empty
    taken = np.zeros_like(kept)
    taken[np.delete(np.arange(len(kept)), last)] = partition(tokens, own, rng)
    runs = np.stack((kept, taken), 1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def corrupt_spans(ids: np.ndarray, doc: np.ndarray, noise: np.ndarray) -> Streams:
    """Each run of ``noise`` becomes a sentinel in the source; in the target it follows that sentinel.

    Sentinels are numbered in order over the row. The terminator of the target is in the last document that has one.
    """
    begins = noise & ~np.append(False, noise[:-1])
    sentinels = N_FIXED + np.arange(np.count_nonzero(begins))
    kept = begins | ~noise
    source = ids.copy()
    source[begins] = sentinels
    at = np.flatnonzero(begins[noise])
    target, target_doc = np.insert(ids[noise], at, sentinels), np.insert(doc[noise], at, doc[begins])
    return terminated(Streams(source[kept], doc[kept], target, target_doc))


def terminated(streams: Streams) -> Streams:
    """With BOS as the last target, in the document of the one before it (without any: the row's last)."""
    last = (streams.target_doc if len(streams.target) else streams.source_doc)[-1]
    return streams._replace(
        target=np.append(streams.target, BOS), target_doc=np.append(streams.target_doc, last)
    )
