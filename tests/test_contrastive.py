"""Contrastive learning: what pairs are, who is a negative of whom, and that chunks and widths change nothing else."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops
from llmtrain.config import to_plain
from llmtrain.data.collate import collate
from llmtrain.data.rows import DocumentRows
from llmtrain.data.shards import Shards, ShardWriter
from llmtrain.errors import ConfigError
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.model import Layer, Model, ModelConfig
from llmtrain.nn.routing import by_layer
from llmtrain.objectives.base import Task
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.embedding import embed, head_of, pool
from llmtrain.objectives.pairs import Pairs, strangers
from llmtrain.ops import backend
from llmtrain.ops.infonce import cosines, info_nce, misses
from llmtrain.types import BOS, IGNORE, MASK, NO_DOC, PAD, Row, Seq, Visibility
from tests.tiny import DENSE, N_RESERVED, VOCAB, Uniform, batch_of, examples_of, model_of, noise, stream

T = 12
PLAIN = DENSE["plain"]
DROPPED = dataclasses.replace(PLAIN, dropout=0.2)
EXPERTS = dataclasses.replace(
    DROPPED, layers=(Layer(mixer=Attention(head_dim=8), mlp=MoE(n_experts=4, balance=0.1, z_loss=0.01)),)
)
VARIANTS: dict[str, dict[str, Any]] = {
    "crops": {},
    "adjacent": {"pairs": "adjacent", "directions": "one"},
    "dropout": {"pairs": "dropout", "pooling": "first"},
    "projected": {"projection": 16, "matryoshka": (4, 8), "learn_temperature": True},
    "mlm": {"aux": "mlm"},
    "clm": {"aux": "clm", "visibility": "causal", "pooling": "last"},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def document(n: int, *, number: int = 3, padding: int = 0) -> Row:
    """BOS and ``n`` words, all different, of one document."""
    ids = np.concatenate([[BOS], N_RESERVED + np.arange(n), [PAD] * padding])
    return Row(ids, np.array([number] * (n + 1) + [NO_DOC] * padding))


def pairs_of(objective: Contrastive, row: Row, *, seed: int = 0, seq_len: int = T) -> Pairs:
    return objective.example(row, VOCAB, seq_len=seq_len, rng=np.random.default_rng(seed))


def words_of(text: Seq) -> list[int]:
    return [int(i) for i, doc in zip(text.ids, text.doc, strict=True) if doc != NO_DOC][1:]


# examples


@variants
@pytest.mark.parametrize("n", [4, 11, 22])
def test_views_have_one_length_begin_with_bos_and_are_one_document(changes, n):
    objective = Contrastive(**changes)
    row = document(n, padding=objective.raw_len(T) - n - 1 if n < objective.raw_len(T) else 0)
    example = pairs_of(objective, row)
    for view in example[:2]:
        ids, doc, pos, prefix = view.text
        real = doc != NO_DOC
        assert len(ids) == T and ids[0] == BOS and BOS not in ids[1:]
        assert not (real[1:] & ~real[:-1]).any(), "padding comes last"
        assert (ids[~real] == PAD).all() and (doc[real] == 0).all() and real.sum() > 1
        assert pos[real].tolist() == list(range(real.sum()))
        assert prefix.all() if objective.sees is Visibility.BIDIRECTIONAL else not prefix.any()
        assert view.at.shape == view.targets.shape
    assert example.marks[0] == 3
    assert example.first.key != example.second.key


def test_crops_are_two_spans_of_half_of_the_text_that_chance_chooses():
    starts = set()
    for seed in range(40):
        for view in pairs_of(Contrastive(), document(22), seed=seed)[:2]:
            said = words_of(view.text)
            assert said == list(range(said[0], said[0] + 11))
            starts.add(said[0] - N_RESERVED)
    assert starts == set(range(12))
    short = pairs_of(Contrastive(), document(9, padding=13))
    assert [len(words_of(view.text)) for view in short[:2]] == [4, 4]


@pytest.mark.parametrize("n", [22, 21, 9])
def test_adjacent_spans_lie_side_by_side(n):
    first, second, _ = pairs_of(Contrastive(pairs="adjacent"), document(n))
    half = min(T - 1, n // 2)
    assert words_of(first.text) + words_of(second.text) == list(range(N_RESERVED, N_RESERVED + 2 * half))


def test_dropouts_see_one_text_and_differ_by_their_keys_alone():
    objective = Contrastive(pairs="dropout")
    first, second, marks = pairs_of(objective, document(11))
    assert words_of(first.text) == words_of(second.text) == list(range(N_RESERVED, N_RESERVED + 11))
    assert marks[1] == marks[2]
    batch = collate([pairs_of(objective, document(11))] * 2)
    model = model_of(objective, DROPPED)
    a, b = embed(model, batch).z.unbind(1)
    assert not torch.allclose(a, b)
    a, b = embed(model.eval(), batch).z.unbind(1)
    torch.testing.assert_close(a, b)


@variants
def test_an_example_is_a_pure_function_of_row_and_rng(changes):
    objective, row = Contrastive(**changes), document(22)
    before = row.ids.copy()
    one, again, other = (collate([pairs_of(objective, row, seed=seed)]) for seed in (1, 1, 2))
    assert flat(one) == flat(again) != flat(other)
    assert (row.ids == before).all()


def flat(tree: Any) -> list[Any]:
    return tree.tolist() if isinstance(tree, Tensor) else [flat(part) for part in tree]


def test_mlm_masks_its_share_and_predicts_what_was_there():
    example = pairs_of(Contrastive(aux="mlm", aux_rate=0.3), document(22))
    clean = pairs_of(Contrastive(), document(22))
    assert (example.marks == clean.marks).all(), "views are alike by what they said before they were masked"
    for view in example[:2]:
        ids, at, targets = view.text.ids, view.at.tolist(), view.targets.tolist()
        assert len(set(at)) == len(at) == round(0.3 * 11) and 0 not in at
        said = [targets[at.index(i)] if i in at else ids[i] for i in range(1, T)]
        assert said == list(range(said[0], said[0] + 11))
        assert MASK in ids
    short = pairs_of(Contrastive(aux="mlm", aux_rate=0.3), document(9, padding=13)).first
    assert (short.targets != IGNORE).sum() == round(0.3 * 4) and len(short.targets) == 3


def test_clm_predicts_each_next_token_of_a_view_and_no_padding():
    objective = Contrastive(aux="clm", visibility="causal", pooling="last")
    for n in (22, 9):
        for view in pairs_of(objective, document(n, padding=22 - n))[:2]:
            scored = view.targets != IGNORE
            assert view.targets[scored].tolist() == words_of(view.text)
            assert view.at[scored].tolist() == list(range(scored.sum()))
            assert len(view.at) == T - 1


def test_rows_of_real_shards_make_pairs_of_their_documents(tmp_path: Path):
    texts = [
        np.random.default_rng(i).integers(N_RESERVED, VOCAB.size, n) for i, n in enumerate((5, 60, 33, 200))
    ]
    with ShardWriter(tmp_path / "s", VOCAB, {}) as writer:
        for text in texts:
            writer.add(text, len(text))
    shards = Shards.open(tmp_path / "s")
    objective = Contrastive(pairs="adjacent")
    rows = DocumentRows(shards, objective.raw_len(T))
    assert rows.n_rows > 10
    for i in range(rows.n_rows):
        first, second, marks = pairs_of(objective, rows[i])
        text = texts[marks[0]].tolist()
        said = words_of(first.text) + words_of(second.text)
        assert any(text[j : j + len(said)] == said for j in range(len(text)))


# the loss


def by_hand(z: Tensor, marks: Tensor, temperature: float, *, both: bool) -> Tensor:
    """Nats of each row, element by element."""
    out = []
    for i in range(len(z)):
        nats = []
        for a, b in ((0, 1), (1, 0)) if both else ((0, 1),):
            logits = {}
            for j in range(len(z)):
                mine, theirs = marks[i].tolist(), marks[j].tolist()
                if i == j or (mine[0] != theirs[0] and not {*mine[1:]} & {*theirs[1:]}):
                    logits[j] = F.cosine_similarity(z[i, a], z[j, b], dim=0) / temperature
            nats.append(torch.stack(list(logits.values())).logsumexp(0) - logits[i])
        out.append(torch.stack(nats).mean())
    return torch.stack(out)


@pytest.mark.parametrize("directions", ["one", "both"])
def test_duplicates_and_rows_of_one_document_are_no_negatives(directions):
    """Equal content at any place of two pairs parts them, as does one document; the loss is the definition's."""
    objective = Contrastive(directions=directions, temperature=0.2)
    rows = Uniform(7, objective.raw_len(T), seed=0)
    batch = examples_of(objective, [rows[i] for i in range(7)], seq_len=T)
    batch.marks[1, 0] = batch.marks[0, 0]  # one document
    batch.marks[3, 1] = batch.marks[2, 1]  # first views alike
    batch.marks[5, 2] = batch.marks[4, 1]  # a second view like a first one
    apart = strangers(batch.marks, batch.marks)
    assert {(i, j) for i, j in (~apart).nonzero().tolist() if i < j} == {(0, 1), (2, 3), (4, 5)}
    model = model_of(objective, PLAIN).double()
    out = objective.loss(model, batch)
    expected = by_hand(embed(model, batch).z, batch.marks, 0.2, both=directions == "both")
    torch.testing.assert_close(out.nats, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.loss, expected.mean(), rtol=0, atol=1e-12)
    assert out.counts.tolist() == [1.0] * 7


def test_a_pair_alone_or_among_copies_of_itself_costs_nothing():
    objective = Contrastive()
    example = pairs_of(objective, document(22))
    out = objective.loss(model_of(objective, PLAIN), collate([example, example, example]))
    assert out.nats.tolist() == [0.0] * 3


def test_both_directions_are_symmetric_and_one_is_not():
    for directions in ("one", "both"):
        objective = Contrastive(directions=directions)
        batch, model = batch_of(objective, rows=5), model_of(objective, PLAIN).double()
        swapped = Pairs(batch.second, batch.first, batch.marks[:, [0, 2, 1]])
        one, other = (objective.loss(model, b).nats for b in (batch, swapped))
        assert torch.allclose(one, other, rtol=0, atol=1e-12) == (directions == "both")


def test_matryoshka_is_the_mean_over_widths_each_cut_and_normalised_anew():
    objective = Contrastive(matryoshka=(4, 16), directions="one", temperature=0.1)
    batch, model = batch_of(objective, rows=5), model_of(objective, PLAIN).double()
    out, z = objective.loss(model, batch), embed(model, batch).z
    each = [by_hand(z[..., :width], batch.marks, 0.1, both=False) for width in (4, 16, 32)]
    torch.testing.assert_close(out.loss, torch.stack(each).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.nats, each[-1], rtol=0, atol=1e-12)


def test_the_loss_is_computed_in_single_precision_under_autocast():
    objective = Contrastive(projection=16, learn_temperature=True)
    batch, model = batch_of(objective, rows=5), model_of(objective, PLAIN)
    with torch.autocast("cpu", torch.bfloat16):
        z = embed(model, batch).z
        assert z.dtype == torch.bfloat16
        assert cosines(z[:, 0], z[:, 1]).dtype == torch.float32
        out = objective.loss(model, batch)
    assert out.loss.dtype == out.nats.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_temperature_is_learnt_within_its_bounds_and_can_come_back():
    objective = Contrastive(learn_temperature=True, temperature=0.1)
    model, batch = model_of(objective, PLAIN).double(), batch_of(objective, rows=5)
    log_scale = head_of(model).log_scale
    assert log_scale.item() == pytest.approx(math.log(10))

    def slope(at: float, sign: float) -> float:
        log_scale.data.fill_(at)
        (grad,) = torch.autograd.grad(sign * objective.loss(model, batch).loss, log_scale)
        return grad.item()

    eps = 1e-6
    numeric = [
        objective.loss(model, batch).loss.item()
        for log_scale.data[0] in (math.log(10) + eps, math.log(10) - eps)
    ]
    assert slope(math.log(10), 1) == pytest.approx((numeric[0] - numeric[1]) / (2 * eps), rel=1e-5)
    for beyond, bound in ((6.0, 100.0), (-1.0, 1.0)):
        log_scale.data.fill_(beyond)
        assert head_of(model).scale().item() == pytest.approx(bound)
        slopes = [slope(beyond, sign) for sign in (1, -1)]
        assert slopes.count(0.0) == 1  # one way leads back
        assert max(slopes, key=abs) * beyond > 0  # descent goes against the slope: towards the bound


def test_the_term_for_tokens_is_their_nats_over_what_full_views_predict():
    for changes in (VARIANTS["mlm"], VARIANTS["clm"]):
        objective = Contrastive(**changes, aux_weight=0.5)
        rows = [document(22, number=0), document(9, number=1, padding=13)]
        batch = collate([pairs_of(objective, row, seed=i) for i, row in enumerate(rows)])
        model = model_of(objective, PLAIN).double()
        out = objective.loss(model, batch)
        nats = torch.zeros(())
        for view in batch[:2]:
            logits = head_of(model).tokens(model(view.text).h)
            for row, at, targets in zip(logits, view.at, view.targets, strict=True):
                nats = nats + F.cross_entropy(row[at], targets, ignore_index=IGNORE, reduction="sum")
        n = sum(one.scored - 1 for one in objective.passes(T))
        torch.testing.assert_close(out.loss, out.nats.mean() + 0.5 * nats / (2 * n))
        shared, own = (
            {name for name, _ in model_of(objective, cfg).named_parameters()} for cfg in (PLAIN, DENSE["gqa"])
        )
        assert own - shared == {"head.tokens.weight"}  # tied where the model ties


# embeddings


@pytest.mark.parametrize("how", ["mean", "last", "first"])
def test_pooling_ignores_padding(how):
    seq, h = stream(((5,), (8,), (1,)), 8), noise(3, 8, 4)
    z = pool(h, seq, how)
    for row, n in enumerate((5, 8, 1)):
        real = h[row, :n]
        expected = {"mean": real.mean(0), "last": real[-1], "first": real[0]}[how]
        torch.testing.assert_close(z[row], expected, rtol=0, atol=1e-14)


@variants
def test_an_embedding_does_not_depend_on_padding_or_the_rows_beside_it(changes):
    objective = Contrastive(**changes)
    model = model_of(objective, PLAIN).double().eval()
    short = collate([pairs_of(objective, document(9, padding=13), seq_len=T)])
    wide = [pairs_of(objective, document(n, padding=30 - n), seq_len=16) for n in (9, 30)]
    one, two = embed(model, short).z, embed(model, collate(wide)).z
    if objective.aux != "mlm":  # masks differ where lengths do
        torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-12)
    assert one.shape[-1] == (objective.projection or 32)


# chunks


def loss_and_gradient(objective: Contrastive, cfg: ModelConfig, batch: Pairs) -> tuple[Any, list[Tensor]]:
    task = Task(model_of(objective, cfg).double(), objective)
    out = task(batch)
    return out, list(torch.autograd.grad(out.loss, list(task.parameters())))


@pytest.mark.parametrize("rows", [1, 3, 7, 50])
@pytest.mark.parametrize("cfg", [DROPPED, EXPERTS], ids=["dropout", "experts"])
def test_chunks_change_neither_loss_nor_gradient(cfg, rows):
    """With dropout, a balance loss, a term for tokens, widths and a learnt temperature."""
    objective = Contrastive(aux="mlm", matryoshka=(8,), learn_temperature=True)
    batch = batch_of(objective, rows=7)
    whole, expected = loss_and_gradient(objective, cfg, batch)
    parts, found = loss_and_gradient(dataclasses.replace(objective, chunk_rows=rows), cfg, batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(parts.nats, whole.nats, rtol=0, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_what_routers_count_is_counted_once_whatever_is_made_anew():
    objective = Contrastive()
    batch = batch_of(objective, rows=7)
    whole, _ = loss_and_gradient(objective, EXPERTS, batch)
    parts, _ = loss_and_gradient(dataclasses.replace(objective, chunk_rows=2), EXPERTS, batch)
    assert len(whole.routing) == 2 and len(parts.routing) == 2 * 4
    tokens = sum((view.text.doc != NO_DOC).sum().item() for view in batch[:2])
    for one, other in zip(by_layer(2, whole.routing), by_layer(2, parts.routing), strict=True):
        assert one.counts.sum() == other.counts.sum() == 2 * tokens
        assert torch.equal(one.counts, other.counts)


def test_a_chunk_is_no_part_of_what_makes_a_run():
    chunked = Contrastive(chunk_rows=8)
    assert to_plain(chunked, identity=True) == to_plain(Contrastive(), identity=True)


# learning and counting


@variants
def test_every_variant_learns_a_batch(changes):
    objective = Contrastive(**changes)
    task = Task(model_of(objective, DROPPED if objective.pairs == "dropout" else PLAIN), objective)
    batch = batch_of(objective, rows=7, seq_len=T)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    scores = []
    for _ in range(20):
        out = task(batch)
        optimizer.zero_grad()
        out.loss.backward()
        if not scores:
            assert [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
        scores.append(out.loss.item())
    assert scores[-1] < 0.5 * scores[0]


@variants
@pytest.mark.parametrize("rows", [1, 3])
def test_flops_counter_is_what_torch_counts_of_a_batch(changes, rows):
    objective = Contrastive(**changes)
    model, batch = model_of(objective, PLAIN), batch_of(objective, rows=rows, seq_len=T)
    with backend.force(attention="reference"), FlopCounterMode(display=False) as counter:
        objective.loss(model, batch).loss.backward()
    said = flops(PLAIN, objective, T, vocab_size=VOCAB.size, batch_rows=rows)
    assert counter.get_total_flops() == rows * said.counter


def test_flops_model_by_hand():
    """Both towers, the projection of each, one similarity with every row at each width, and the predicted tokens."""
    cfg = ModelConfig(n_layers=1, d_model=16, layers=(Layer(mixer=Attention(head_dim=8), mlp=GELU()),))
    objective = Contrastive(projection=8, matryoshka=(4,), aux="mlm", aux_rate=0.3, chunk_rows=2)
    tower = 2 * 10 * (4 * 16 * 16 + 2 * 16 * 64) + 4 * 16 * 10 * 10
    head = 2 * 16 * 8 + 2 * 3 * 16 * 100  # 30% of nine tokens
    similarity = 2 * 64 * (4 + 8)
    found = flops(cfg, objective, 10, vocab_size=100, batch_rows=64).model
    assert found == 3 * (2 * (tower + head) + similarity)


# held-out rows


def held_out(
    objective: Contrastive, n_rows: int, documents: int, *, per_batch: int = 5
) -> tuple[Model, list[Pairs]]:
    main = objective.evaluations()[0]
    rows = Uniform(n_rows, main.raw_len(T), seed=0)
    raw = [rows[i]._replace(doc=rows[i].doc * 0 + i * documents // n_rows) for i in range(n_rows)]
    batches = [examples_of(main, raw[i : i + per_batch], seq_len=T) for i in range(0, n_rows, per_batch)]
    return model_of(objective, PLAIN).double().eval(), batches


def scores(objective: Contrastive, model: Model, batches: list[Pairs]) -> list[Tensor]:
    with torch.no_grad():
        found = [zip(*one.held_out(model, batches), strict=True) for one in objective.evaluations()]
    out = []
    for nats, counts in found:
        out.append(torch.cat(nats))
        assert torch.cat(counts).tolist() == [1.0] * len(out[-1])
    return out


def test_each_held_out_row_is_told_from_exactly_so_many_others(monkeypatch):
    """By a loop: the next rows, in one order, of other documents and other content."""
    monkeypatch.setattr("llmtrain.objectives.retrieval._BLOCK", 4)
    objective = Contrastive(eval_negatives=9, temperature=0.2, pairs="dropout")
    model, batches = held_out(objective, 23, 6)
    batches[0].marks[3, 1] = batches[2].marks[1, 2]  # rows 3 and 11 say the same
    z = torch.cat([embed(model, batch).z for batch in batches])
    marks = torch.cat([batch.marks for batch in batches])
    from llmtrain import philox

    order = philox.generator(0, "held-out negatives").permutation(23).tolist()
    nats, missed = [], []
    for place, i in enumerate(order):
        later = [order[(place + step) % 23] for step in range(1, 23)]
        others = [j for j in later if strangers(marks[[i]], marks[[j]])][:9]
        cosine = F.cosine_similarity(z[i, :1], z[[i, *others], 1])
        nats.append((cosine / 0.2).logsumexp(0) - cosine[0] / 0.2)
        missed.append(float(cosine[1:].max() >= cosine[0]))
    found = scores(objective, model, batches)
    torch.testing.assert_close(found[0], torch.stack(nats), rtol=0, atol=1e-12)
    assert found[1].tolist() == missed
    assert 0 < sum(missed) < 23


def test_held_out_scores_do_not_depend_on_how_rows_are_batched():
    objective = Contrastive(eval_negatives=9)
    a, b = (scores(objective, *held_out(objective, 23, 6, per_batch=n)) for n in (5, 23))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_too_few_held_out_rows_are_refused_with_numbers():
    objective = Contrastive(eval_negatives=18)
    model, batches = held_out(objective, 23, 4)
    with pytest.raises(
        ConfigError, match=r"eval_negatives=18, but of 23 held-out rows some have only 17 of other"
    ):
        scores(objective, model, batches)
    rows = [document(5, number=n) for n in (0, 0, 0, 1, 2)]
    with pytest.raises(ConfigError, match=r"of 5 held-out rows some have only 2 of other"):
        objective.evaluations()[0].check_held_out(rows)
    Contrastive(eval_negatives=2).evaluations()[0].check_held_out(rows)


def test_embeddings_that_are_all_alike_find_nothing():
    z = torch.ones(5, 4)
    everyone = ~torch.eye(5, dtype=torch.bool)
    cosine, own = cosines(z, z), torch.arange(5)
    assert misses(cosine, own, everyone).tolist() == [1.0] * 5
    torch.testing.assert_close(info_nce(cosine, own, everyone, 20.0), torch.full((5,), math.log(5)))


def test_scores_of_all_kinds_of_pairs_have_one_name_and_one_task():
    """What a run trained on is its own business: two hashes agree where the held-out task does."""
    tasks = {
        tuple(str(to_plain(one, identity=True)) for one in Contrastive(**changes).evaluations())
        for changes in VARIANTS.values()
    }
    assert len(tasks) == 1
    names = [one.score_name for one in Contrastive().evaluations()]
    assert names == ["infonce1023_nats_per_pair", "infonce1023_one_minus_recall_at_1"]
    assert len({one.score_name for n in (7, 9) for one in Contrastive(eval_negatives=n).evaluations()}) == 4


def test_nothing_is_known_of_independent_spans():
    """Adjacent spans share no token, so that guessing among n + 1 has a closed form."""
    nats, missed = Contrastive(eval_negatives=63).evaluations()
    assert nats.floor(VOCAB, T) == math.log(64) and missed.floor(VOCAB, T) == 63 / 64
    objective = Contrastive(eval_negatives=63)
    found = scores(objective, *held_out(objective, 128, 128))
    for one, values in zip(objective.evaluations(), found, strict=True):
        error = values.std().item() / 128**0.5
        assert values.mean().item() >= one.floor(VOCAB, T) - 3 * error


def test_a_sample_names_the_nearest_spans_and_says_which_is_true():
    objective = Contrastive()
    rows = [document(22, number=i)._replace(ids=np.roll(document(22).ids[1:], 3 * i)) for i in range(4)]
    rows = [Row(np.append(BOS, row.ids), row.doc, i) for i, row in enumerate(rows)]
    found = objective.samples(
        model_of(objective, PLAIN).eval(), rows, VOCAB, lambda ids: " ".join(map(str, ids)), seq_len=T, seed=0
    )
    assert len(found) == 4
    for row, sample in zip(rows, found, strict=True):
        assert sample.given == " ".join(map(str, row.ids[1:12]))
        place, *lines = sample.made.split("\n\n")
        assert len(lines) == 3 and place.startswith("its own is number ") and place.endswith(" of 4")
        own = [i for i, line in enumerate(lines, 1) if "(its own)" in line]
        assert own == [i for i in [int(place.split()[4])] if i <= 3]
        cosine = [float(line.split()[0]) for line in lines]
        assert cosine == sorted(cosine, reverse=True)


# refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0: 0.05 is usual"),
        ({"temperature": -1.0}, "temperature must be positive"),
        (
            {"temperature": 2.0, "learn_temperature": True},
            r"stays within \[0.01, 1\].*learn_temperature=false",
        ),
        ({"projection": 0}, "projection must be at least 1"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1"),
        ({"eval_negatives": 0}, "eval_negatives must be at least 1"),
        ({"matryoshka": (8, 4)}, "must be widths that increase"),
        ({"matryoshka": (0, 4)}, "must be widths that increase"),
        (
            {"pooling": "first", "visibility": "causal"},
            "has seen nothing under visibility=causal: choose pooling=last",
        ),
        ({"aux": "clm"}, "aux=clm under visibility=bidirectional: .*; set visibility=causal"),
        (
            {"aux": "mlm", "visibility": "causal"},
            "aux=mlm under visibility=causal: .*; set visibility=bidirectional",
        ),
        ({"aux": "mlm", "aux_rate": 1.0}, r"aux_rate must be in \(0, 1\)"),
        ({"aux": "mlm", "aux_weight": -0.1}, "aux_weight must not be negative"),
        ({"pairs": "words"}, "crops"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(changes, says):
    with pytest.raises(ValueError, match=says):
        Contrastive(**changes)


def test_what_cannot_work_with_a_model_is_refused_with_the_way_out():
    simcse = Contrastive(pairs="dropout")
    with pytest.raises(ValueError, match=r"model.dropout=0: set model.dropout=0.1, or objective.pairs=crops"):
        simcse.check(PLAIN, seq_len=T, one_document=True)
    simcse.check(DROPPED, seq_len=T, one_document=True)
    with pytest.raises(ValueError, match="seq_len=3 leaves a view too few tokens: give at least 4"):
        Contrastive().check(PLAIN, seq_len=3, one_document=True)
    with pytest.raises(
        ValueError, match=r"matryoshka=\[8, 32\] must be narrower than the embedding, .* width 32"
    ):
        Contrastive(matryoshka=(8, 32)).build(PLAIN, VOCAB.size)
