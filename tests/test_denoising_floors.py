"""The closed-form floors of denoising and infilling, against what counting says a reader cannot know."""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.fim import FillInTheMiddle, move_middles
from llmtrain.objectives.mixture import Mixture
from llmtrain.objectives.noise import BartNoise, Noise, SpanNoise, SuffixNoise
from llmtrain.types import N_FIXED, Row, Vocab

N_RESERVED = N_FIXED + 2
TWO_WORDS = Vocab(
    size=N_RESERVED + 2,
    n_reserved=N_RESERVED,
    n_bytes=np.ones(N_RESERVED + 2, np.int32),
    starts_word=np.ones(N_RESERVED + 2, bool),
    ends_sentence=np.zeros(N_RESERVED + 2, bool),
)


def texts(n: int, draws: int) -> Iterable[tuple[Row, np.random.Generator]]:
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield Row(rng.integers(N_RESERVED, N_RESERVED + 2, n), np.zeros(n, int)), rng


def entropy(noise: Noise, n: int, *, draws: int) -> float:
    """H(target | source) in nats over uniform texts of two words, from counts: what Bayes cannot do better than."""
    pairs, sources = Counter(), Counter()
    for raw, rng in texts(n, draws):
        source, _, target, _ = noise.streams(raw, TWO_WORDS, rng)
        pairs[source.tobytes(), target.tobytes()] += 1
        sources[source.tobytes()] += 1
    return sum(k * math.log(sources[source] / k) for (source, _), k in pairs.items()) / draws


@pytest.mark.parametrize(
    ("noise", "n", "expected"),
    [
        (
            SpanNoise(rate=0.6, mean=1.5),
            5,
            3 * math.log(2) + math.log(2),
        ),  # three tokens in two spans: 1 + 2, 2 + 1
        (SuffixNoise(rate=0.5), 4, 2 * math.log(2)),
    ],
)
def test_the_floor_is_what_a_reader_of_the_source_cannot_know(noise, n, expected):
    assert noise.floor_nats(n, math.log(2)) == pytest.approx(expected)
    assert entropy(noise, n, draws=2000) == pytest.approx(expected, rel=0.02)


def test_the_floor_of_bart_is_a_bound_below_what_a_reader_cannot_know():
    noise = BartNoise(infill=0.3, delete=0.3, permute_sentences=False)
    floor = noise.floor_nats(4, math.log(2))  # of three tokens one is in a span and one is deleted
    assert floor == pytest.approx(2 * math.log(2))
    assert floor - 0.01 < entropy(noise, 4, draws=2000)


def test_the_floor_of_moved_middles_is_the_entropy_of_their_rows():
    """Given the first token, which is not predicted."""
    seq_len, objective = 5, FillInTheMiddle(rate=0.5, spm=0.3)
    rows, firsts = Counter(), Counter()
    draws = 8000
    for raw, rng in texts(seq_len + 1, draws):
        made = move_middles(raw, rate=objective.rate, spm=objective.spm, rng=rng).ids
        rows[made.tobytes()] += 1
        firsts[int(made[0])] += 1
    joint = -sum(k / draws * math.log(k / draws) for k in rows.values())
    first = -sum(k / draws * math.log(k / draws) for k in firsts.values())
    assert (joint - first) / seq_len == pytest.approx(objective.floor(TWO_WORDS, seq_len), rel=0.01)


def test_the_floor_of_a_row_is_per_target_and_that_of_a_mixture_a_mean_by_targets():
    spans, suffix = Denoising(noise=SpanNoise(rate=0.5)), Denoising(noise=SuffixNoise())
    n, targets = spans.raw_len(64), spans.scored(64)
    nats, words = n // 2 * math.log(2), math.log(math.comb(n // 2 - 1, round(n // 2 / 3) - 1))
    assert spans.floor(TWO_WORDS, 64) == pytest.approx((nats + words) / targets)
    both = Mixture(noises=(spans.noise, suffix.noise))
    expected = sum(one.floor(TWO_WORDS, 64) * one.scored(64) for one in (spans, suffix))
    assert both.floor(TWO_WORDS, 64) == pytest.approx(expected / (spans.scored(64) + suffix.scored(64)))
