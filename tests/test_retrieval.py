"""Held-out pairs: each is told from exactly so many others, the same for every run."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain import philox
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError
from llmtrain.nn.model import Model
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.embedding import embed
from llmtrain.objectives.pairs import Pairs, strangers
from llmtrain.ops.infonce import cosines, info_nce, misses
from llmtrain.types import BOS, Row
from tests.contrast import PLAIN, VARIANTS, T, document
from tests.tiny import VOCAB, Uniform, examples_of, model_of


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
    objective = Contrastive(eval_negatives=4, temperature=0.2, pairs="dropout")
    model, batches = held_out(objective, 23, 6)
    batches[0].marks[3, 1] = batches[2].marks[1, 2]  # rows 3 and 11 say the same
    z = torch.cat([embed(model, batch).z for batch in batches])
    marks = torch.cat([batch.marks for batch in batches])
    order = philox.generator(0, "held-out negatives").permutation(23).tolist()
    nats, missed = [], []
    for place, i in enumerate(order):
        later = [order[(place + step) % 23] for step in range(1, 23)]
        others = [j for j in later if strangers(marks[[i]], marks[[j]])][:4]
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
    objective = Contrastive(eval_negatives=31)
    found = scores(objective, *held_out(objective, 64, 64, per_batch=64))
    for one, values in zip(objective.evaluations(), found, strict=True):
        error = values.std().item() / 64**0.5
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
