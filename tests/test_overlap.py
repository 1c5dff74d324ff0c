"""Overlap with the training text: found exactly where 50 characters are shared."""

import numpy as np
import pytest

from llmtrain.data.shards import Shards, ShardWriter
from llmtrain.evaluation import overlap
from llmtrain.evaluation.overlap import LENGTH, normal, shared, training_texts
from tests.subjects import TOKENIZER


def texts(rng: np.random.Generator, n: int, alphabet: str) -> list[str]:
    return ["".join(rng.choice(list(alphabet), rng.integers(0, 300))) for _ in range(n)]


def brute(item: str, training: list[str]) -> bool:
    x = normal(item)
    return any(x[i : i + LENGTH] in normal(t) for t in training for i in range(len(x) - LENGTH + 1))


@pytest.mark.parametrize("alphabet", ["ab", "abcdefgh \n", "日本語の文　章é"])
def test_an_item_overlaps_iff_a_window_of_it_stands_in_the_training_text(alphabet):
    rng = np.random.default_rng(len(alphabet))
    training = texts(rng, 30, alphabet)
    items = texts(rng, 30, alphabet)
    for i in range(0, 30, 2):  # half of them with a piece of about 50 characters of the training text within
        of = training[i]
        start, n = rng.integers(0, max(1, len(of))), rng.integers(40, 70)
        items[i] = items[i][:20] + of[start : start + n] + items[i][20:40]
    found = shared(items, training)
    assert [found.hits(item) for item in items] == [brute(item, training) for item in items]
    assert any(map(found.hits, items)) and not all(map(found.hits, items))


def test_white_space_and_the_form_of_accents_do_not_hide_a_copy():
    line = "    for é, value in sorted(pairs.items(), key=attrgetter('x')): pass\n"
    copy = "\tfor é,  value in\n sorted(pairs.items(), key=attrgetter('x')): pass"
    found = shared(
        [copy, "something else that is longer than fifty characters, but nowhere"], ["x = 1\n" + line]
    )
    assert found.hits(copy)
    assert (
        len(shared(["something else that is longer than fifty characters, but nowhere"], [line]).hashes) == 0
    )


def test_no_window_lies_across_two_texts_nor_is_lost_between_blocks(monkeypatch):
    left, right = "a" * 40 + "b" * 9, "c" * 45
    assert not shared([left + right], [left, right]).hits(left + right)
    monkeypatch.setattr(overlap, "_BLOCK", 64)
    long = "".join(np.random.default_rng(0).choice(list("abcdef"), 1000))
    items = [long[i : i + LENGTH] for i in range(0, 950, 7)]
    found = shared(items, [long, left])
    assert all(map(found.hits, items))


def test_the_training_text_is_read_back_from_shards(tmp_path):
    texts = ["first document, which is\nlonger than the others", "三つ目", "the last one\n"]
    with ShardWriter(tmp_path / "train", TOKENIZER.vocab(), {"tokenizer_hash": TOKENIZER.hash}) as writer:
        for text in texts:
            writer.add(TOKENIZER.encode(text), len(text.encode()))
    assert list(training_texts(Shards.open(tmp_path / "train"), TOKENIZER)) == texts
