"""Causal language modelling: what an example is, what its loss is, and that nobody sees the answer."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from llmtrain.config import config
from llmtrain.data.collate import collate
from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Objective, Task
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.scoring import HeldOut, score
from llmtrain.types import BOS, IGNORE, NO_DOC, PAD, Row, Visibility, Vocab
from tests.tiny import DENSE, VOCAB, Uniform, batch_of, model_of, words

CLM = CausalLM()
RNG = np.random.default_rng(0)


def example(row: Row, seq_len: int) -> CausalBatch:
    return CLM.example(row, VOCAB, seq_len=seq_len, rng=RNG)


def padded(n: int, padding: int) -> Row:
    row = words(n)
    ids, doc = np.append(row.ids, [PAD] * padding), np.append(row.doc, [NO_DOC] * padding)
    return Row(ids, doc)


# examples


def test_a_target_is_the_next_token_also_across_documents():
    """BOS is the only separator, so the end of a document is predicted as "BOS comes next"."""
    ids = np.array([BOS, 20, 21, BOS, 30, 31, BOS, 40])
    text, targets, _ = example(Row(ids, np.array([0, 0, 0, 1, 1, 1, 2, 2])), 7)
    assert text.ids.tolist() == [BOS, 20, 21, BOS, 30, 31, BOS]
    assert targets.tolist() == [20, 21, BOS, 30, 31, BOS, 40]
    assert text.doc.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert text.pos.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_row_that_begins_within_a_document_counts_from_its_own_first_token():
    text, *_ = example(Row(np.array([20, 21, BOS, 30]), np.array([4, 4, 5, 5])), 3)
    assert text.pos.tolist() == [0, 1, 0]


@pytest.mark.parametrize("padding", [1, 2, 5])
def test_padding_is_never_a_target(padding):
    text, targets, _ = example(padded(12 - padding, padding), 11)
    row = padded(12 - padding, padding)
    assert (targets == IGNORE).sum() == padding
    assert (targets[targets != IGNORE] == row.ids[1 : 12 - padding]).all()
    assert (targets[text.doc == NO_DOC] == IGNORE).all()


@pytest.mark.parametrize("seq_len", [1, 8, 33])
def test_rows_have_one_length_and_one_count(seq_len):
    """So that a mean of means over ranks and accumulation steps is the mean."""
    for seed in range(8):
        row = words(CLM.raw_len(seq_len), documents=1 + seed % 3, seed=seed)
        text, targets, _ = example(row, seq_len)
        assert {len(x) for x in (*text, targets)} == {seq_len}
        assert (targets != IGNORE).sum() == CLM.scored(seq_len)
    assert sum(one.scored for one in CLM.passes(seq_len)) == CLM.scored(seq_len)


def test_the_promise_about_the_prefix_is_kept():
    assert CLM.sees is Visibility.CAUSAL
    assert not batch_of(CLM).text.prefix.any()


def test_an_example_is_a_pure_function_of_its_arguments():
    row = words(25)
    before = row.ids.copy(), row.doc.copy()
    first, second = collate([example(row, 24)]), collate([example(row, 24)])
    assert all(
        torch.equal(a, b)
        for a, b in zip([*first.text, first.targets], [*second.text, second.targets], strict=True)
    )
    assert (row.ids == before[0]).all() and (row.doc == before[1]).all()


# the loss


def test_the_loss_is_nats_over_a_constant_and_counts_are_what_is_scored():
    raw = [words(13, seed=1), padded(8, 5)]
    batch = collate([example(row, 12) for row in raw])
    model = model_of(CLM, DENSE["plain"]).double()
    out = CLM.loss(model, batch)
    logits = model.head(model(batch.text).h)
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view(2, 12)
    torch.testing.assert_close(out.nats, nats.sum(1))
    torch.testing.assert_close(out.loss, nats.sum() / (2 * CLM.scored(12)))
    assert out.counts.tolist() == [12, 7]


def test_the_mean_of_the_losses_of_the_parts_is_the_loss_of_the_whole():
    """Also where rows score different numbers of positions: what makes accumulation and ranks exact."""
    rows = [words(13, seed=1), padded(8, 5), padded(3, 10), words(13, seed=2)]
    model = model_of(CLM, DENSE["plain"]).double()

    def gradient(part: list[Row]) -> torch.Tensor:
        loss = CLM.loss(model, collate([example(row, 12) for row in part])).loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])

    parts = [gradient(rows[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(rows), rtol=0, atol=1e-12)


def test_the_z_loss_is_optimised_and_not_scored():
    batch, model = batch_of(CLM), model_of(CLM, DENSE["plain"]).double()
    plain, with_z = (CausalLM(z_loss=z).loss(model, batch) for z in (0.0, 0.1))
    assert torch.equal(plain.nats, with_z.nats)
    squares = model.head(model(batch.text).h).logsumexp(-1).square()
    torch.testing.assert_close(with_z.loss - plain.loss, 0.1 * squares.mean())


def test_an_untrained_model_knows_nothing():
    out = CLM.loss(model_of(CLM, DENSE["gqa"]), batch_of(CLM, rows=16))
    assert abs(out.loss.item() - math.log(VOCAB.size)) < 0.7


# the entropy floor


@config
class Cheat(CausalLM):
    """Sees its own targets: the floor must catch it."""

    @property
    def sees(self) -> Visibility:
        return Visibility.BIDIRECTIONAL

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> CausalBatch:
        text, targets, key = super().example(row, vocab, seq_len=seq_len, rng=rng)
        return CausalBatch(text._replace(prefix=np.ones_like(text.prefix)), targets, key)


def held_out_score(objective: Objective, *, steps: int, seq_len: int = 16):
    model = model_of(objective, ModelConfig(**{**vars(DENSE["plain"]), "n_layers": 1}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    train = Uniform(32 * steps, objective.raw_len(seq_len), seed=1000)
    for step in range(steps):
        rows = [train[32 * step + i] for i in range(32)]
        batch = collate([objective.example(row, VOCAB, seq_len=seq_len, rng=RNG) for row in rows])
        optimizer.zero_grad()
        objective.loss(model, batch).loss.backward()
        optimizer.step()
    return score(
        Task(model, objective),
        HeldOut(objective, Uniform(128, objective.raw_len(seq_len), seed=0), "", "", True),
        VOCAB,
        seq_len=seq_len,
        batch_rows=32,
        context=nullcontext,
    ).score


def test_nobody_beats_the_entropy_of_uniform_tokens():
    floor = CLM.floor(VOCAB, 16)
    assert floor == math.log(VOCAB.size - VOCAB.n_reserved)
    found = held_out_score(CLM, steps=80)
    assert found.value >= floor - 3 * found.se
    assert found.value < floor + 0.1  # it did learn what there is to learn: that reserved ids never come


def test_the_floor_catches_a_leak():
    found = held_out_score(Cheat(), steps=80)
    assert found.value < CLM.floor(VOCAB, 16) - 10 * found.se
