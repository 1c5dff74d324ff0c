"""Frozen features: what each kind of model may see of a text, and where vectors are taken."""

import numpy as np
import pytest
import torch

from llmtrain.evaluation.features import HEAD, Place, beginnings, span_features, text_features
from llmtrain.evaluation.tasks import Input
from llmtrain.types import Seq
from tests.subjects import OBJECTIVES, TOKENIZER, subject_of
from tests.tiny import FAMILIES

TEXTS = ["def f(x):", "a", "", "Ein längerer Text, über zwei Zeilen\nund mehr.", "1, 2, 3"]
ALL = ("mean", "last", "first", "max")
TOP = Place("2", "last")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_features_of_a_text_do_not_depend_on_its_batch(objective, architecture):
    subject = subject_of(objective, architecture)
    together = text_features(subject, TEXTS, ALL)
    for i, text in enumerate(TEXTS):
        for place, alone in text_features(subject, [text], ALL).items():
            np.testing.assert_allclose(together[place][i], alone[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_read_twice_features_are_the_same_to_the_bit(objective):
    subject = subject_of(objective)
    first, second = (text_features(subject, TEXTS, ALL) for _ in range(2))
    assert all(np.array_equal(first[place], second[place]) for place in first)
    assert {place.layer for place in first} == {"0", "1", "2"} | (
        {HEAD} if objective == "contrastive" else set()
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_position_sees_what_follows_unless_the_model_is_causal(objective):
    before, after = (
        span_features(subject_of(objective), [Input(text, (0, 3))])[TOP] for text in ("abc one", "abc two")
    )
    assert np.array_equal(before, after) == (objective == "clm")


def test_the_features_of_an_encoder_decoder_are_those_of_its_encoder():
    subject = subject_of("denoising", share_embeddings=False)
    before = text_features(subject, TEXTS, ("mean",))
    with torch.no_grad():
        for parameter in [*subject.model.trunk.parameters(), subject.model.embed.weight]:
            parameter.add_(1.0)
    assert all(
        np.array_equal(x, before[place]) for place, x in text_features(subject, TEXTS, ("mean",)).items()
    )
    with torch.no_grad():
        subject.model.encoder.blocks[0].mixer.qkv.weight.mul_(2.0)
    assert not np.array_equal(
        text_features(subject, TEXTS, ("mean",))[Place("2", "mean")], before[Place("2", "mean")]
    )


@pytest.mark.parametrize("objective", ["clm", "mlm", "denoising"])
def test_a_part_that_is_the_whole_text_has_the_features_of_the_text(objective):
    subject = subject_of(objective)
    texts = [text for text in TEXTS if text]
    parts = span_features(subject, [Input(text, (0, len(text))) for text in texts])
    whole = text_features(subject, texts, ("mean", "last"))
    for place in whole:
        np.testing.assert_allclose(parts[place], whole[place], rtol=0, atol=1e-6)


def test_the_last_layer_is_what_the_head_reads():
    subject = subject_of("contrastive")
    text = "some text to embed"
    own = text_features(subject, [text], ("mean",))[Place(HEAD, "own")][0]
    assert own.shape == (12,)
    subject = subject_of("clm")
    ids = torch.tensor([[1, *TOKENIZER.encode(text).tolist()]])
    place = torch.arange(ids.shape[1])[None]
    h = subject.model(Seq(ids, torch.zeros_like(ids), place, torch.zeros_like(ids, dtype=torch.bool))).h
    found = text_features(subject, [text], ("last",))
    np.testing.assert_allclose(found[TOP][0], h[0, -1].detach(), atol=1e-5)


def test_a_part_of_a_long_text_is_found_wherever_it_is():
    subject = subject_of("mlm", seq_len=16)
    text = "0123456789" * 5 + "ünïque" + "!" * 20
    at = text.index("ünïque")
    embedding = span_features(subject, [Input(text, (at, at + 6)), Input("ünïque", (0, 6))])
    # at layer 0 a token is itself, whatever is around it; the row that holds the end may lack the beginning
    first, second = embedding[Place("0", "last")]
    assert np.array_equal(first, second)
    assert not np.array_equal(*embedding[TOP])


def test_a_text_is_cut_to_what_a_row_holds():
    assert [len(row) for row in beginnings(subject_of("clm", seq_len=16), ["x" * 40, "y"], 64)] == [15, 1]
    assert [len(row) for row in beginnings(subject_of("denoising", seq_len=16), ["x" * 40], 64)] == [14]
