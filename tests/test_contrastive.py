"""Contrastive learning: who is a negative of whom, what the loss is, what it costs, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops
from llmtrain.data.collate import collate
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.objectives.base import Task
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.embedding import embed, head_of, pool
from llmtrain.objectives.pairs import Pairs, strangers
from llmtrain.ops import backend
from llmtrain.ops.infonce import cosines
from llmtrain.types import IGNORE
from tests.contrast import DROPPED, PLAIN, VARIANTS, T, document, pairs_of, variants
from tests.tiny import DENSE, VOCAB, Uniform, batch_of, examples_of, model_of, noise, stream


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
