"""The numpy side of denoising: what is taken out of packed rows, how much of it, and that nothing gets lost."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from llmtrain.objectives.corruption import (
    Plan,
    most_noise,
    partition,
    plan,
    span_counts,
    spread,
)
from llmtrain.objectives.layouts import late
from llmtrain.objectives.noise import BartNoise, Noise, SpanNoise, SuffixNoise
from llmtrain.types import BOS, MASK, MODES, N_FIXED, NO_DOC, PAD, Row, Vocab
from tests.spelt import SPOKEN, row

N_RESERVED = N_FIXED + 256
SIZE = N_RESERVED + 500
VOCAB = Vocab(
    size=SIZE,
    n_reserved=N_RESERVED,
    n_bytes=np.ones(SIZE, np.int32),
    starts_word=np.ones(SIZE, bool),
    ends_sentence=np.arange(SIZE) % 10 == 0,
)
SPANS = [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0)]
NOISES: list[Noise] = [
    *(SpanNoise(rate=rate, mean=mean) for rate, mean in SPANS),
    SuffixNoise(),
    BartNoise(),
    BartNoise(infill=0.0, delete=0.3, permute_sentences=False),
    BartNoise(infill=0.4, delete=0.5, mean=1.0),
]
noises = pytest.mark.parametrize("noise", NOISES, ids=[noise.name for noise in NOISES])


def packed(n: int, seed: int, *, length: float = 60.0, padding: int = 0) -> Row:
    """A row as packed text gives it: it begins within a document, and BOS begins the others."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(N_RESERVED, SIZE, n)
    ids[rng.random(n) < 1 / length] = BOS
    doc = np.cumsum(ids == BOS)
    doc -= doc[0]
    if padding:
        ids[-padding:], doc[-padding:] = PAD, NO_DOC
    return Row(ids, doc, seed)


def rebuilt(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text of which span corruption made these: each sentinel of the source gives way to what follows it."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if N_FIXED <= token < N_RESERVED:
            spans[token] = found = []
        else:
            found.append(token)
    return [t for token in source.tolist() for t in spans.get(token, [token])]


# counts and random partitions


def test_noise_and_spans_are_those_of_t5():
    assert span_counts(568, 0.15, 3.0) == Plan(568, 85, 28)
    assert span_counts(1006, 0.5, 64.0) == Plan(1006, 503, 8)
    assert span_counts(1, 0.15, 3.0) == Plan(1, 0, 0)  # the first token is always kept
    assert span_counts(2, 0.15, 3.0) == Plan(2, 1, 1)
    assert span_counts(10, 0.9, 1.0) == Plan(10, 9, 1)  # no more spans than kept tokens to part them


def test_a_partition_has_no_empty_part_and_all_are_alike():
    rng = np.random.default_rng(0)
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(3000):
        parts = partition(np.array([5, 1, 4]), np.array([3, 1, 2]), rng).tolist()
        assert (sum(parts[:3]), parts[3], sum(parts[4:])) == (5, 1, 4)
        found[tuple(parts[:3])] += 1
        found[tuple(parts[4:])] += 1
    expected = {3: math.comb(4, 2), 2: math.comb(3, 1)}
    for parts, n in expected.items():
        counts = [count for key, count in found.items() if len(key) == parts]
        assert len(counts) == n
        assert all(abs(count - 3000 / n) < 5 * math.sqrt(3000 / n) for count in counts)


def test_a_total_is_spread_in_proportion_within_bounds_and_without_bias():
    rng = np.random.default_rng(0)
    weights, low, high = np.array([10, 0, 1, 29, 60]), np.array([0, 0, 1, 0, 0]), np.array([9, 0, 4, 9, 5])
    draws = np.stack([spread(17, weights, low, high, rng) for _ in range(1500)])
    assert (draws.sum(1) == 17).all() and (draws >= low).all() and (draws <= high).all()
    assert (draws[:, -1] == 5).all()  # its share would be more, and the others have the rest by their weights
    assert np.allclose(draws.mean(0), [2.82, 0, 1, 8.18, 5], atol=0.06)
    plain = np.stack(
        [spread(3, np.array([5, 3, 2]), np.zeros(3, int), np.full(3, 9), rng) for _ in range(1500)]
    )
    assert np.allclose(plain.mean(0), [1.5, 0.9, 0.6], atol=0.06)


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (1, 1, 6), (2, 2, 2), (1, 5, 1, 3)])
def test_what_a_plan_lets_through_is_what_fits(sizes):
    """Against all ways to give every segment its tokens and spans."""
    n = sum(sizes)
    starts = np.cumsum(sizes) - np.array(sizes)

    def fits(noise: int, spans: int) -> bool:
        each = [
            [(0, 0)] + [(k, s) for k in range(1, size) for s in range(1, min(k, size - k) + 1)]
            for size in sizes
        ]
        return any(
            (sum(k for k, _ in way), sum(s for _, s in way)) == (noise, spans)
            for way in itertools.product(*each)
        )

    for spans in range(1, n):
        for noise in range(spans, n):
            found = plan(starts, Plan(n, noise, spans), most_spans=99, rate=0.3, mean=2.0)
            assert (found == (n, noise, spans)) == fits(noise, spans)
    assert most_noise(np.array(sizes), 1) == max(sizes) - 1


# rows


@noises
@pytest.mark.parametrize("length", [4, 20, 300])
def test_a_packed_row_has_one_length_and_one_count(noise, length):
    """Also where documents are far shorter than the spans: 200 rows of each."""
    for seed in range(0, 200, 1 if length > 4 else 8):
        n = 120 + seed
        source, _, target, _ = noise.streams(
            packed(n, seed, length=length), VOCAB, np.random.default_rng(seed)
        )
        most, targets = noise.lengths(n)
        assert len(target) == targets
        assert len(source) <= most
        if not isinstance(noise, BartNoise):
            assert len(source) == most


@noises
def test_no_document_hears_of_another_and_none_loses_its_bos(noise):
    for seed in range(60):
        raw = packed(200, seed, length=20)
        source, source_doc, target, target_doc = noise.streams(raw, VOCAB, np.random.default_rng(seed))
        assert (np.diff(source_doc) >= 0).all() and (np.diff(target_doc) >= 0).all()
        for d in np.unique(source_doc):
            mine = set(raw.ids[raw.doc == d].tolist())
            text = [*source[source_doc == d], *target[target_doc == d]]
            assert set(text) <= mine | {BOS, MASK} | set(range(N_FIXED, N_RESERVED))
            if raw.ids[raw.doc == d][0] == BOS:
                assert source[source_doc == d][0] == BOS
                assert (source[source_doc == d] == BOS).sum() == 1
        assert (target == BOS).sum() <= 1 or isinstance(noise, BartNoise)  # there BOS ends each document
        assert target[-1] == BOS


@pytest.mark.parametrize(("rate", "mean"), SPANS)
def test_source_and_target_of_spans_rebuild_the_row(rate, mean):
    noise = SpanNoise(rate=rate, mean=mean)
    for seed in range(60):
        raw = packed(300, seed, length=(10, 40, 1000)[seed % 3])
        source, _, target, _ = noise.streams(raw, VOCAB, np.random.default_rng(seed))
        text = rebuilt(source, target)
        assert text == raw.ids[: len(text)].tolist()
        if (
            seed % 3
        ):  # documents of ten tokens are too short for long spans: the end of the row pays for more of them
            lost = 0 if mean < 64 or seed % 3 == 2 else 60
            assert len(text) >= 300 - lost


@pytest.mark.parametrize(("rate", "mean"), SPANS)
def test_noise_and_spans_of_a_row_are_exact_where_documents_are_long_enough(rate, mean):
    noise = SpanNoise(rate=rate, mean=mean)
    for seed in range(40):
        raw = packed(500, seed, length=1e9)
        raw = raw._replace(doc=np.arange(500) >= (0, 200)[seed % 2])
        found = noise.streams(raw, VOCAB, np.random.default_rng(seed))
        sentinels = (found.target >= N_FIXED) & (found.target < N_RESERVED)
        _, tokens, spans = span_counts(500, rate, mean)
        assert (sentinels.sum(), len(found.target) - 1 - sentinels.sum()) == (spans, tokens)


def test_sentinels_are_numbered_over_the_row_in_order_of_appearance():
    for seed in range(40):
        source, source_doc, target, target_doc = SpanNoise().streams(
            packed(300, seed), VOCAB, np.random.default_rng(seed)
        )
        for stream in (source, target):
            found = stream[(stream >= N_FIXED) & (stream < N_RESERVED)]
            assert found.tolist() == list(range(N_FIXED, N_FIXED + len(found)))
        at = (source >= N_FIXED) & (source < N_RESERVED)
        in_target = (target >= N_FIXED) & (target < N_RESERVED)
        assert source_doc[at].tolist() == target_doc[in_target].tolist()  # in the same document of both


def test_a_decoder_begins_every_document_with_bos():
    for noise in NOISES:
        found = noise.streams(packed(200, 3, length=20), VOCAB, np.random.default_rng(3))
        first = np.append(True, np.diff(found.target_doc) != 0)
        read = late(found)
        assert (read[first] == BOS).all()
        assert (read[1:][~first[1:]] == found.target[:-1][~first[1:]]).all()


@noises
def test_rows_of_the_shortest_documents_and_of_hardly_any_text_are_made_too(noise):
    """Documents of one token, a row with one token that is not padding, and what lies between."""
    for n, length in itertools.product((2, 3, 8, 40), (1, 1.3, 2)):
        for padding in {0, 1, n - 1}:
            for seed in range(8):
                raw = packed(n, seed, length=length, padding=padding)
                source, _, target, _ = noise.moded(raw, VOCAB, np.random.default_rng(seed))
                most, targets = noise.lengths(n)
                assert 1 <= len(source) <= most and 1 <= len(target) <= targets


@noises
def test_where_documents_are_not_kept_apart_bos_is_still_no_noise(noise):
    raw = packed(200, 0, length=20)._replace(doc=np.zeros(200, int))
    source, _, target, _ = noise.streams(raw, VOCAB, np.random.default_rng(0))
    n_bos = (raw.ids == BOS).sum()
    if isinstance(noise, SpanNoise):
        assert (source == BOS).sum() == n_bos and (target == BOS).sum() == 1
    if isinstance(noise, BartNoise):
        assert (source == BOS).sum() == n_bos


@noises
def test_streams_are_a_pure_function_of_the_row_and_the_generator(noise):
    raw = packed(200, 0)
    before = raw.ids.copy(), raw.doc.copy()
    first, second, other = (noise.streams(raw, VOCAB, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, other, strict=True)) or (
        isinstance(noise, SuffixNoise)
    )
    assert (raw.ids == before[0]).all() and (raw.doc == before[1]).all()


def test_a_mode_takes_the_place_of_bos():
    raw = row()
    plain = SpanNoise(rate=0.3, mean=2).streams(raw, SPOKEN, np.random.default_rng(0))
    moded = SpanNoise(rate=0.3, mean=2, mode="X").moded(raw, SPOKEN, np.random.default_rng(0))
    second = int(np.flatnonzero(plain.source_doc == 1)[0])
    assert moded.source[0] == MODES[2] == moded.source[second + 1]
    assert np.delete(moded.source, [0, second + 1]).tolist() == np.delete(plain.source, second).tolist()
    assert moded.target.tolist() == plain.target.tolist()
