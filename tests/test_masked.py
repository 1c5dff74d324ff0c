"""Masked language modelling: what is scored, what the loss is, what it costs, and what nobody can beat."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmtrain import philox
from llmtrain.accounting import flops
from llmtrain.config import config
from llmtrain.data.collate import collate
from llmtrain.nn.model import Model, ModelConfig
from llmtrain.objectives.base import Loss, Task
from llmtrain.objectives.masked import MaskedBatch, MaskedLM
from llmtrain.ops import backend
from llmtrain.record import Score
from llmtrain.scoring import HeldOut, score
from llmtrain.types import BOS, IGNORE, MASK, NO_DOC, PAD, Row, Script, Visibility, Vocab
from tests.matrix import fitting
from tests.tiny import ARCHS, DENSE, N_RESERVED, VOCAB, Uniform, batch_of, model_of, words

MLM = MaskedLM()
VARIANTS = {
    "token": MLM,
    "fifteen": MaskedLM(rate=0.15),
    "mask_alone": MaskedLM(mask=1.0, random=0.0),
    "word": MaskedLM(unit="word"),
    "span": MaskedLM(span=3.0),
    "word_span": MaskedLM(unit="word", span=2.0, rate=0.4),
}
variants = pytest.mark.parametrize("mlm", VARIANTS.values(), ids=VARIANTS.keys())

# every other word of the vocabulary is kanji at its ends, the others are kana
JAPANESE = VOCAB._replace(
    starts_word=np.zeros(VOCAB.size, bool),
    scripts=np.array([[Script.KANJI] * 2, [Script.HIRAGANA] * 2] * (VOCAB.size // 2), np.uint8),
)


def example(mlm: MaskedLM, row: Row, *, vocab: Vocab = VOCAB, seed: int = 0) -> MaskedBatch:
    rng = philox.generator(seed, "example", 0, row.number)
    return mlm.example(row, vocab, seq_len=len(row.ids), rng=rng)


def short(n: int, length: int, seed: int = 0) -> Row:
    """A row of which only ``n`` tokens are text."""
    row = words(length, seed=seed)
    return Row(
        np.where(np.arange(length) < n, row.ids, PAD), np.where(np.arange(length) < n, row.doc, NO_DOC)
    )


# examples


def test_a_golden_example():
    ids = np.array([BOS, 50, 51, 52, 53, 54, 55, BOS, 60, 61, 62, 63])
    row = Row(ids, np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
    text, at, targets, _ = example(MaskedLM(rate=0.5, mask=0.5, random=0.2), row)
    assert text.ids.tolist() == [BOS, 50, MASK, 52, 53, 70, MASK, BOS, 60, 61, 62, MASK]  # 53 and 62 are kept
    assert at.tolist() == [2, 4, 5, 6, 10, 11]
    assert targets.tolist() == [51, 53, 54, 55, 62, 63]
    assert text.doc.tolist() == row.doc.tolist()
    assert text.pos.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]


@variants
@pytest.mark.parametrize("seq_len", [10, 24, 33])
def test_rows_have_one_length_and_one_count(mlm, seq_len):
    """So that a mean of means over ranks and accumulation steps is the mean."""
    for seed in range(8):
        row = words(mlm.raw_len(seq_len), documents=1 + seed % 3, seed=seed)
        text, at, targets, _ = example(mlm, row)
        assert {len(x) for x in text} == {seq_len}
        assert len(at) == len(targets) == mlm.scored(seq_len) == round(mlm.rate * seq_len)
        assert (targets == row.ids[at]).all()
        elsewhere = np.delete(np.arange(seq_len), at)
        assert (text.ids[elsewhere] == row.ids[elsewhere]).all()
    assert [one.scored for one in mlm.passes(seq_len)] == [mlm.scored(seq_len)]


@pytest.mark.parametrize("n", [0, 1, 5, 9])
def test_a_row_with_fewer_tokens_scores_those_that_it_has(n):
    row = short(n, 24)
    text, at, targets, _ = example(MLM, row)
    scored = targets != IGNORE
    assert scored.sum() == min(n, 7) and len(at) == 7
    assert (row.doc[at[scored]] != NO_DOC).all()
    assert (text.ids[n:] == PAD).all()


def test_the_promise_about_the_prefix_is_kept():
    assert MLM.sees is Visibility.BIDIRECTIONAL
    assert batch_of(MLM).text.prefix.all()


def test_every_row_draws_its_own_masks():
    row = words(64)
    first, again, other = example(MLM, row), example(MLM, row), example(MLM, row._replace(number=1))
    assert (first.text.ids == again.text.ids).all() and first.key == again.key
    assert first.at.tolist() != other.at.tolist() and first.key != other.key


# the loss


def plain_loss(model: Model, batch: MaskedBatch, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(nats of each row, z-loss of the batch): all logits of all positions, and then the scored ones."""
    logits = model.head(model(batch.text).h)
    nats, squares = torch.zeros(len(logits), dtype=logits.dtype), logits.new_zeros(())
    for r, (at, targets) in enumerate(zip(batch.at.tolist(), batch.targets.tolist(), strict=True)):
        for p, target in zip(at, targets, strict=True):
            if target != IGNORE:
                nats[r] += torch.nn.functional.cross_entropy(logits[r, p], torch.tensor(target))
                squares = squares + z_loss * logits[r, p].logsumexp(0).square()
    return nats, squares


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_scored_positions_over_a_constant(z_loss):
    mlm = MaskedLM(z_loss=z_loss)
    rows = [words(24, seed=1), short(4, 24), short(0, 24), words(24, seed=2)]
    batch, model = collate([example(mlm, row) for row in rows]), model_of(mlm, DENSE["plain"]).double()
    out = mlm.loss(model, batch)
    nats, squares = plain_loss(model, batch, z_loss)
    expected = (nats.sum() + squares) / (4 * 7)
    torch.testing.assert_close(out.nats, nats)
    torch.testing.assert_close(out.loss, expected)
    assert out.counts.tolist() == [7, 4, 0, 7]
    for a, b in zip(gradients(out.loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def gradients(loss: torch.Tensor, model: Model) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_the_mean_of_the_losses_of_the_parts_is_the_loss_of_the_whole():
    """Also where rows score different numbers of positions: what makes accumulation and ranks exact."""
    examples = [example(MLM, row) for row in (words(24), short(3, 24), short(9, 24), words(24, seed=1))]
    model = model_of(MLM, DENSE["plain"]).double()
    parts = [gradients(MLM.loss(model, collate([one])).loss, model) for one in examples]
    whole = gradients(MLM.loss(model, collate(examples)).loss, model)
    for of_parts, of_whole in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.stack(of_parts).mean(0), of_whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cfg", ARCHS.values(), ids=ARCHS.keys())
def test_documents_of_a_row_do_not_hear_one_another(cfg):
    """What another document says changes nothing of what is predicted in this one."""
    fitting(MLM, cfg)
    batch, model = batch_of(MLM), model_of(MLM, cfg).double().eval()
    first = batch.text.doc == 0
    other = batch.text._replace(ids=torch.where(first, batch.text.ids, N_RESERVED))
    with backend.force(attention="reference"):
        before, after = model(batch.text).h, model(other).h
    torch.testing.assert_close(before[first], after[first], rtol=0, atol=1e-12)
    assert (before[~first] - after[~first]).abs().max() > 1e-3


@variants
def test_a_batch_is_learnt_by_heart(mlm):
    out = overfit(mlm, DENSE["plain"], batch_of(mlm), steps=25)
    assert (out.nats.sum() / out.counts.sum()).item() < 0.1


def test_a_batch_of_japanese_words_is_learnt_by_heart():
    mlm = MaskedLM(unit="word")
    examples = [example(mlm, words(24, seed=i)._replace(number=i), vocab=JAPANESE) for i in range(4)]
    out = overfit(mlm, DENSE["plain"], collate(examples), steps=25)
    assert (out.nats.sum() / out.counts.sum()).item() < 0.1


def overfit(mlm: MaskedLM, cfg: ModelConfig, batch: MaskedBatch, *, steps: int) -> Loss:
    model = model_of(mlm, cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        mlm.loss(model, batch).loss.backward()
        optimizer.step()
    return mlm.loss(model, batch)


# what it costs


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.6])
def test_the_head_is_run_and_counted_on_scored_positions_alone(rate, rows):
    mlm, cfg = MaskedLM(rate=rate, z_loss=1e-4), DENSE["plain"]
    model, batch = model_of(mlm, cfg), batch_of(mlm, rows=rows)
    with backend.force(attention="reference"), FlopCounterMode(display=False) as counter:
        mlm.loss(model, batch).loss.backward()
    expected = flops(cfg, mlm, 24, vocab_size=VOCAB.size)
    assert counter.get_total_flops() == rows * expected.counter
    least = flops(cfg, MaskedLM(rate=0.05), 24, vocab_size=VOCAB.size)
    head = 3 * 2 * (mlm.scored(24) - 1) * VOCAB.size * 32  # forward and backward, of all positions but one
    assert expected.model - least.model == head


# what nobody can beat


@pytest.mark.parametrize("shares", [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.2, 0.4), (0.5, 0.0)])
def test_the_floor_is_the_score_of_the_best_predictor_of_uniform_tokens(shares):
    """Who sees the mask knows nothing; who sees a token knows how often what is scored was kept."""
    mlm = MaskedLM(rate=0.4, mask=shares[0], random=shares[1])
    n, masked, size = 40, round(40 * shares[0]), VOCAB.size - N_RESERVED
    kept = n - round(40 * (shares[0] + shares[1]))
    nats = []
    for seed in range(300):
        text, at, targets, _ = example(mlm, words(100, seed=seed))
        seen = text.ids[at]
        p_kept = kept / (n - masked) if masked < n else 0.0
        p_seen = p_kept + (1 - p_kept) / size
        p_other = np.float64((1 - p_kept) / size)
        hidden = seen == MASK
        assert hidden.sum() == masked
        with np.errstate(divide="ignore"):
            of_seen = np.where(seen == targets, -np.log(p_seen), -np.log(p_other))
        nats.append(np.where(hidden, math.log(size), of_seen).mean())
    error = np.std(nats) / math.sqrt(len(nats))
    assert abs(np.mean(nats) - mlm.floor(VOCAB, 100)) <= 4 * error + 1e-12


def test_hidden_words_say_where_words_begin_and_the_floor_allows_for_it():
    begins = (np.arange(VOCAB.size) >= N_RESERVED) & (np.arange(VOCAB.size) < N_RESERVED + 16)
    vocab = VOCAB._replace(starts_word=begins)
    mlm = MaskedLM(unit="word")
    assert mlm.floor(vocab, 24) == pytest.approx(6 / 7 * math.log(16))
    nats = []  # of who is told, at every place, whether the token begins a word
    for seed in range(50):
        text, at, targets, _ = example(mlm, words(24, seed=seed), vocab=vocab)
        of_class = np.where(begins[targets], math.log(16), math.log(32))
        nats.append(np.where(text.ids[at] == MASK, of_class, 0).mean())
    assert min(nats) >= mlm.floor(vocab, 24) - 1e-12
    assert mlm.floor(VOCAB, 24) == pytest.approx(MLM.floor(VOCAB, 24))  # each token a word: nothing is told


@pytest.mark.parametrize("span", [1.0, 2.0])
def test_who_knows_the_script_of_every_hidden_token_does_not_beat_the_floor_of_japanese_words(span):
    """It knows all that the choice depends on, and more than the floor's predictor, who knows where words begin."""
    mlm = MaskedLM(unit="word", rate=0.5, span=span)
    nats = []
    for seed in range(50):
        text, at, _, _ = example(mlm, words(40, documents=1, seed=seed), vocab=JAPANESE)
        nats.append(np.where(text.ids[at] == MASK, math.log(24), 0).mean())
    told = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))  # a kanji behind kana: one pair in four
    assert mlm.floor(JAPANESE, 40) == pytest.approx(0.8 * math.log(48) - 40 / 20 * told)
    assert min(nats) >= mlm.floor(JAPANESE, 40)
    assert MaskedLM(unit="word", rate=0.15).floor(JAPANESE, 40) == 0  # where words begin may tell all


@config
class Cheat(MaskedLM):
    """Shows what it asks for: the floor must catch it."""

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> MaskedBatch:
        batch = super().example(row, vocab, seq_len=seq_len, rng=rng)
        return batch._replace(text=batch.text._replace(ids=row.ids))


@pytest.mark.parametrize("mlm", [MLM, Cheat()], ids=["honest", "cheat"])
def test_the_floor_holds_and_catches_a_leak(mlm):
    found, floor = trained_on_noise(mlm, VOCAB)
    if isinstance(mlm, Cheat):
        assert found.value < floor - 10 * found.se
    else:
        assert floor - 3 * found.se <= found.value < floor + 0.2


@pytest.mark.parametrize("mlm", [MaskedLM, Cheat], ids=["honest", "cheat"])
def test_the_floor_of_japanese_words_holds_and_catches_a_leak(mlm):
    found, floor = trained_on_noise(mlm(unit="word", rate=0.5), JAPANESE)
    assert 0.5 < floor < math.log(24)
    assert found.value < floor - 10 * found.se if mlm is Cheat else found.value > floor


def trained_on_noise(mlm: MaskedLM, vocab: Vocab) -> tuple[Score, float]:
    """The held-out score, and its floor."""
    model = model_of(mlm, ModelConfig(**{**vars(DENSE["plain"]), "n_layers": 1}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    train = Uniform(16 * 60, 20, seed=1000)
    for step in range(60):
        batch = collate([example(mlm, train[16 * step + i], vocab=vocab) for i in range(16)])
        optimizer.zero_grad()
        mlm.loss(model, batch).loss.backward()
        optimizer.step()
    held_out = HeldOut(mlm, Uniform(128, 20, seed=0), "", "", True)
    found = score(Task(model, mlm), held_out, vocab, seq_len=20, batch_rows=64, context=nullcontext).score
    return found, mlm.floor(vocab, 20)
