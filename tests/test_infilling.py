"""BART's corruptions: as many tokens as were to go, spans that are Poisson, sentences that stay whole."""

import math

import numpy as np
import pytest

from llmtrain.objectives.corruption import segment_starts
from llmtrain.objectives.infilling import permute_sentences, place, poisson_lengths
from llmtrain.objectives.noise import BartNoise
from llmtrain.types import BOS, MASK
from tests.test_corruption import VOCAB, packed


def test_lengths_are_poisson_and_add_up():
    rng = np.random.default_rng(0)
    drawn = [poisson_lengths(2000, 3.0, rng) for _ in range(30)]
    assert all(spans.sum() == 2000 and (spans > 0).all() for spans, _ in drawn)
    empty, full = sum(n for _, n in drawn), sum(len(spans) for spans, _ in drawn)
    assert empty / (empty + full) == pytest.approx(math.exp(-3), rel=0.1)
    assert np.concatenate([spans for spans, _ in drawn]).mean() == pytest.approx(
        3 / (1 - math.exp(-3)), rel=0.03
    )
    assert poisson_lengths(0, 3.0, rng)[0].tolist() == []


def test_spans_do_not_overlap():
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.integers(1, 5, 6)
        covered, first = place(24, lengths, rng)
        assert covered.sum() == lengths.sum() and first.sum() == 6
        assert (covered | ~first).all()
        ends = np.append(np.flatnonzero(first)[1:], 24)
        own = [covered[a:b].sum() for a, b in zip(np.flatnonzero(first), ends, strict=True)]
        assert sorted(own) == sorted(lengths)


@pytest.mark.parametrize("delete", [0.0, 0.2])
def test_as_many_tokens_are_gone_as_were_to_go(delete):
    noise = BartNoise(delete=delete, permute_sentences=False)
    for seed in range(40):
        raw = packed(301, seed)
        source, _, target, _ = noise.streams(raw, VOCAB, np.random.default_rng(seed))
        n = int((raw.ids[: 301 - (raw.ids[0] != BOS)] != BOS).sum())
        assert ((source != MASK) & (source != BOS)).sum() == n - sum(noise.counts(n))
        assert ((target != BOS).sum(), sum(noise.counts(n))) == (n, round(0.3 * n) + round(delete * n))
        spans = (source == MASK).sum()
        assert 0.2 * 0.3 * n < spans < 0.65 * 0.3 * n  # about a third, and the cuts between documents


def test_sentences_are_shuffled_whole_and_within_their_document():
    raw = packed(300, 5, length=80)
    seen = set()
    for seed in range(5):
        order = permute_sentences(raw.ids, raw.doc, VOCAB.ends_sentence, np.random.default_rng(seed))
        assert sorted(order) == list(range(300)) and (raw.doc[order] == raw.doc).all()
        seen.add(tuple(order))
        starts = segment_starts(raw.ids, raw.doc)
        assert (raw.ids[order][starts[1:]] == BOS).all()
        breaks = np.flatnonzero(np.diff(order) != 1)  # a sentence, BOS or document ends there
        last = raw.ids[order[breaks]]
        is_end = VOCAB.ends_sentence[last] | (last == BOS) | np.isin(order[breaks] + 1, [*starts, 300])
        assert is_end.all()
    assert len(seen) == 5
