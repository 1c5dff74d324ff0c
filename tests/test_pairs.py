"""Pairs of views: spans of one document, chosen by an address, with what their tokens predict."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmtrain.data.collate import collate
from llmtrain.data.rows import DocumentRows
from llmtrain.data.shards import Shards, ShardWriter
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.embedding import embed
from llmtrain.types import BOS, IGNORE, MASK, NO_DOC, PAD, Visibility
from tests.contrast import DROPPED, T, document, flat, pairs_of, variants, words_of
from tests.tiny import N_RESERVED, VOCAB, model_of


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
