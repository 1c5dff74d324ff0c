"""What yardsticks of generation ask: windows and endings of held-out texts, pairs and questions of a user's files."""

import re
from collections import Counter

import numpy as np
import pytest

from llmtrain.errors import DataError
from llmtrain.evaluation.base import Document
from llmtrain.evaluation.choice import read_questions
from llmtrain.evaluation.minimal_pairs import read_pairs
from llmtrain.evaluation.tasks import at_most
from llmtrain.evaluation.windows import windows
from tests.endings import cloze_items
from tests.runs import write_text

JAPANESE = "".join(
    f"私は昨日、川の魚を見た。それは{a}い{b}です。" for a in "白黒赤青高長" for b in "山田森林魚鳥"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return write_text(tmp_path_factory.mktemp("text"), 60_000).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def documents(text) -> tuple[Document, ...]:
    return tuple(
        Document(f"file{i}", text[start : start + 6_000]) for i, start in enumerate(range(0, 60_000, 6_000))
    )


def test_windows_follow_one_another_and_their_halves_are_those_of_the_text():
    for document in (
        Document("ja", JAPANESE),
        Document("en", "A word, another one and more of them.\n" * 30),
    ):
        found = windows([document], 64)
        assert (
            "".join(w.given + w.asked for w in found)
            == document.text[: sum(len(w.given + w.asked) for w in found)]
        )
        assert [w.begins for w in found] == [True] + [False] * (len(found) - 1)
        assert not any(w.ends for w in found[:-1])
        for window in found:
            n_given, n_asked = len(window.given.encode()), len(window.asked.encode())
            assert n_given and n_asked and n_given + n_asked <= 64


def test_windows_are_spread_over_all_and_short_documents_have_none(documents):
    assert {w.file for w in at_most(windows(documents, 256), 10)} == {d.file for d in documents}
    with pytest.raises(DataError, match="half a window"):
        windows([Document("short", "a few words")], 256)


def test_documents_of_one_file_have_items_of_their_own(documents):
    same = [Document("one.py", document.text) for document in documents]
    items = cloze_items(same, same, most=10_000, n_candidates=10, context_bytes=64)
    for ids in ([w.id for w in windows(same, 256)], [item.id for item in items]):
        assert len(set(ids)) == len(ids) > 100


def test_cloze_candidates_are_alike_in_bytes_and_frequency(text, documents):
    items = cloze_items(documents, documents, most=40, n_candidates=20, context_bytes=128)
    assert len(items) == 40
    for item in items:
        assert len(set(item.candidates)) == 20
        assert len({len(candidate.encode()) for candidate in item.candidates}) == 1
        assert len({(c[0], c[-1]) for c in item.candidates}) == 1
        own = next(d.text for d in documents if d.file == item.file)
        at, true = int(item.id.split(":")[-1]), item.candidates[0]
        assert own[at - len(item.given) : at + len(true)] == item.given + true


def test_japanese_endings_are_the_last_four_characters_before_a_mark():
    document = Document("ja", JAPANESE)
    items = cloze_items([document], [document], most=20, n_candidates=3, context_bytes=60)
    assert items
    for item in items:
        assert all(
            len(candidate) == 5 and candidate[-1] == item.candidates[0][-1] for candidate in item.candidates
        )


def test_frequency_alone_does_not_find_the_ending(documents):
    """Its place in the order of frequency is any of them."""
    counts = Counter(re.findall(r"[^\W\d_]+", "".join(d.text for d in documents)))
    items = cloze_items(documents, documents, most=200, n_candidates=20, context_bytes=64)
    shares = []
    for item in items:
        of = np.array([counts[candidate[1:-1]] for candidate in item.candidates])
        shares.append((of > of[0]).mean() - (of < of[0]).mean())
    assert len(items) == 200 and abs(np.mean(shares)) < 4 / np.sqrt(3 * len(items))  # of a uniform place


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ('{"good": "a", "uid": "u"}', "bad is None"),
        ("", "no line"),
    ],
)
def test_a_file_of_pairs_that_is_none_is_named_with_its_line(tmp_path, line, said):
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=said):
        read_pairs(path)


def test_a_label_beyond_the_choices_is_refused(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"q": "?", "choices": ["a", "b"], "label": 2}')
    with pytest.raises(DataError, match="question 1 has label 2"):
        read_questions(path)
