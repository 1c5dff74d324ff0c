"""Fill-in-the-middle and prefix language modelling: the two that stay next-token prediction."""

import numpy as np
import pytest
import torch

from llmtrain.nn.base import Extent
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.fim import FillInTheMiddle, move_middles, rearranged
from llmtrain.objectives.prefix import PrefixLM
from llmtrain.types import BOS, FIM, IGNORE, NO_DOC, PAD, Row, Visibility
from tests.tiny import DENSE, N_RESERVED, VOCAB, batch_of, examples_of, model_of, words

PREFIX, MIDDLE, SUFFIX, _ = FIM


def packed(n: int, seed: int, *, length: float = 12.0, padding: int = 0) -> Row:
    """Documents that each but the first begin with BOS, with words that are never alike."""
    rng = np.random.default_rng(seed)
    ids = N_RESERVED + np.arange(n)
    ids[rng.random(n) < 1 / length] = BOS
    doc = np.cumsum(ids == BOS)
    doc -= doc[0]
    if padding:
        ids[n - padding :], doc[n - padding :] = PAD, NO_DOC
    return Row(ids, doc)


def told(document: list[int]) -> list[int]:
    """The document whose middle was moved, as it was."""
    bos, text = (document[:1], document[1:]) if document[0] == BOS else ([], document)
    if PREFIX not in text:
        return bos + text
    assert text[0] == PREFIX
    s, m = text.index(SUFFIX), text.index(MIDDLE)
    before, suffix, rest = text[1:s], text[s + 1 : m], text[m + 1 :]
    assert s < m
    return bos + before + rest + suffix  # in SPM the prefix is what the rest begins with


# fill-in-the-middle


def test_a_middle_is_moved_as_the_paper_says():
    text = np.arange(20, 26)
    psm = [PREFIX, 20, 21, SUFFIX, 24, 25, MIDDLE, 22, 23]
    spm = [PREFIX, SUFFIX, 24, 25, MIDDLE, 20, 21, 22, 23]
    assert rearranged(text, 2, 4, spm=False).tolist() == psm
    assert rearranged(text, 2, 4, spm=True).tolist() == spm
    assert rearranged(text, 0, 0, spm=False).tolist() == [PREFIX, SUFFIX, *text, MIDDLE]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("length", [1.0, 1.5, 4.0, 30.0, 1e9])
def test_a_row_keeps_its_length_and_every_document_all_it_had_room_for(rate, length):
    for seed in range(100):
        raw = packed(40, seed, length=length, padding=(0, 7, 39)[seed % 3])
        made = move_middles(raw, rate=rate, spm=0.5, rng=np.random.default_rng(seed))
        assert len(made.ids) == 40
        real = made.doc != NO_DOC
        assert (made.ids[~real] == PAD).all()
        marks = [(made.ids == mark).sum() for mark in (PREFIX, MIDDLE, SUFFIX)]
        assert len(set(marks)) == 1
        before = [
            token for d in np.unique(made.doc[real]) for token in told(made.ids[made.doc == d].tolist())
        ]
        assert before == raw.ids[: len(before)].tolist()
        assert len(before) == min((raw.doc != NO_DOC).sum(), 40 - 3 * marks[0])
        if rate == 0:
            assert (made.ids == raw.ids).all()


def test_the_rate_is_of_documents_and_cuts_are_uniform():
    rng = np.random.default_rng(0)
    n, moved, spm, lengths = 0, 0, 0, []
    for seed in range(1500):
        made = move_middles(packed(23, seed, length=1e9), rate=0.5, spm=0.25, rng=rng).ids
        n += 1
        if made[0] == PREFIX:
            moved += 1
            spm += made[1] == SUFFIX
            lengths.append(22 - np.flatnonzero(made == MIDDLE)[0])
    assert moved / n == pytest.approx(0.5, abs=0.04)
    # of twenty tokens; PSM with nothing in front looks like SPM
    assert spm / moved == pytest.approx(0.25 + 0.75 * 41 / 441, abs=0.05)
    cuts = np.sort(np.stack(np.meshgrid(np.arange(21), np.arange(21))).reshape(2, -1), 0)
    after_the_mark = 0.75 * (cuts[1] - cuts[0]).mean() + 0.25 * cuts[1].mean()  # SPM has the prefix there too
    assert np.mean(lengths) == pytest.approx(after_the_mark, abs=0.6)


def test_every_token_is_scored_and_the_end_of_a_middle_is_the_next_bos():
    objective = FillInTheMiddle(rate=1.0)
    raw = packed(41, 3)
    made = objective.example(raw, VOCAB, seq_len=40, rng=np.random.default_rng(0))
    assert (made.targets != IGNORE).sum() == objective.scored(40) == 40
    ends = np.flatnonzero(np.diff(made.text.doc))
    assert len(ends) and (made.targets[ends] == BOS).all()


def test_it_is_scored_as_a_causal_model_first_and_then_with_every_middle_moved():
    plain, moved = FillInTheMiddle(rate=0.5).evaluations()
    assert plain == CausalLM()  # so that its score and hash are those of causal models
    assert moved == FillInTheMiddle(rate=1.0)
    assert (plain.score_name, moved.score_name) == ("clm_nats_per_token", "fim_r100_nats_per_token")
    with pytest.raises(ValueError, match="rate must be in"):
        FillInTheMiddle(rate=1.5)


def test_samples_ask_for_a_middle():
    objective = FillInTheMiddle()
    rows = [packed(25, seed) for seed in range(2)]
    found = objective.samples(
        model_of(objective, DENSE["plain"]), rows, VOCAB, lambda ids: "w" * len(ids), seq_len=24, seed=0
    )
    assert all(
        set(one.given.replace("w", " ").split()) == {"<prefix>", "<suffix>", "<middle>"} for one in found
    )


# prefix-LM


def test_a_prefix_is_seen_and_what_follows_is_scored():
    objective = PrefixLM()
    assert objective.sees is Visibility.PREFIX
    for seed in range(100):
        text, targets, _ = objective.example(
            packed(33, seed, padding=5 * (seed % 2)), VOCAB, seq_len=32, rng=np.random.default_rng(seed)
        )
        plain, all_targets, _ = CausalLM().example(
            packed(33, seed, padding=5 * (seed % 2)), VOCAB, seq_len=32, rng=np.random.default_rng(seed)
        )
        assert (text.ids == plain.ids).all()
        for d in np.unique(text.doc[text.doc != NO_DOC]):
            own = text.doc == d
            prefix = int(text.prefix[own].sum())
            assert prefix >= 1 and text.prefix[own][:prefix].all()
            expected = all_targets[own].copy()
            expected[: prefix - 1] = IGNORE  # what is inside the prefix is seen
            assert (targets[own] == expected).all()


def test_splits_are_uniform_and_the_loss_has_a_constant_normaliser():
    objective, counts = PrefixLM(), np.zeros(13)
    for seed in range(2400):
        made = objective.example(words(13, documents=1), VOCAB, seq_len=12, rng=np.random.default_rng(seed))
        counts[(made.targets != IGNORE).sum()] += 1
    assert counts[0] == 0 and (abs(counts[1:] - 200) < 5 * 200**0.5).all()
    assert counts @ np.arange(13) / 2400 == pytest.approx(objective.scored(12), rel=0.03)
    model, rows = model_of(objective, DENSE["plain"]).double(), [words(13, seed=i) for i in range(4)]
    whole = objective.loss(model, examples_of(objective, rows, seq_len=12))
    parts = [objective.loss(model, examples_of(objective, [r], seq_len=12)).loss for r in rows]
    torch.testing.assert_close(torch.stack(parts).mean(), whole.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.loss, whole.nats.sum() / (4 * 6.5))


@torch.no_grad()
def test_a_token_after_the_prefix_changes_no_output_before_it():
    objective = PrefixLM()
    batch, model = batch_of(objective, rows=4), model_of(objective, DENSE["plain"]).double()
    before = model(batch.text).h
    for j in range(24):
        ids = batch.text.ids.clone()
        ids[:, j] = N_RESERVED + (ids[:, j] - N_RESERVED + 1) % 48
        changed = (model(batch.text._replace(ids=ids)).h != before).any(-1)
        later = batch.text.pos >= batch.text.pos[:, j, None]
        heard = (batch.text.doc == batch.text.doc[:, j, None]) & (later | batch.text.prefix[:, j, None])
        assert torch.equal(changed, heard)


def test_two_passes_stand_for_prefixes_of_all_lengths():
    passes = PrefixLM().passes(512)
    said = sum(one.share * Extent(512, Visibility.PREFIX, one.prefix).pairs() for one in passes)
    mean = sum(Extent(512, Visibility.PREFIX, p).pairs() for p in range(1, 513)) / 512
    assert said == pytest.approx(mean, rel=2e-3)
    assert sum(one.share * one.prefix for one in passes) == pytest.approx(256.5, abs=1)


@pytest.mark.parametrize("objective", [PrefixLM(), FillInTheMiddle()])
def test_it_learns_a_batch(objective):
    model, batch = model_of(objective, DENSE["plain"]), batch_of(objective)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    scores = []
    for _ in range(25):
        out = objective.loss(model, batch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        scores.append((out.nats.sum() / out.counts.sum()).item())
    assert scores[-1] < 0.5 * scores[0]
