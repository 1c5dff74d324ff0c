"""On real sets, where a checkout has them, baselines score what they are known to, and what must be at chance is."""

import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.evaluation.base import Document, HeldOutTexts
from llmtrain.evaluation.docstrings import docstring_retrieval
from llmtrain.evaluation.feature_settings import Graded, Labelled, Probing
from llmtrain.evaluation.labelled import classification, similarity
from llmtrain.evaluation.probe import probe
from llmtrain.evaluation.python_source import python_files
from llmtrain.evaluation.readers import RandomVectors, TfIdf
from llmtrain.evaluation.retrieval import retrieve
from llmtrain.evaluation.similarity import grade
from llmtrain.evaluation.tasks import Classification, Similarity
from runs import SHARED

pytestmark = pytest.mark.slow
PROBING = Probing(C=(0.1, 1.0, 10.0))
WIDTH = 128


def shared(name: str) -> str:
    path = SHARED / "eval" / f"{name}.jsonl.xz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return str(path)


@pytest.fixture(scope="module")
def library() -> tuple[Document, ...]:
    """Files of the standard library with about 1,000 documented functions, and as many for choosing."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(p for p in root.glob("*.py") if p.stat().st_size < 60_000)
    return tuple(Document(p.name, p.read_text(encoding="utf-8")) for p in names)


@pytest.fixture(scope="module")
def tokenizer(library, tmp_path_factory) -> Tokenizer:
    text = [document.text for document in library[::3]]
    return SentencePiece(vocab_size=1024, n_sentinels=16).build(
        lambda: iter(text), tmp_path_factory.mktemp("tokenizer")
    )


@pytest.fixture(scope="module")
def stsb() -> Similarity:
    return similarity(Graded(name="stsb", dev=shared("stsb_en_dev"), test=shared("stsb_en_test")))


@pytest.fixture(scope="module")
def trec() -> Classification:
    return classification(
        Labelled(name="trec", train=shared("trec_train"), test=shared("trec_test"), train_items=5000)
    )


def test_random_vectors_grade_sentences_at_about_58_hundredths(stsb, tokenizer):
    assert grade(stsb, RandomVectors(tokenizer, WIDTH))[0].value == pytest.approx(0.58, abs=0.05)


def test_random_vectors_tell_questions_at_about_64_hundredths(trec, tokenizer):
    assert "10 test items left out" in trec.note
    assert probe(trec, RandomVectors(tokenizer, WIDTH), PROBING)[0].value == pytest.approx(0.64, abs=0.06)


def test_random_vectors_find_one_function_in_eight_among_a_thousand(library, tokenizer):
    files = python_files(HeldOutTexts((), library[::6], tuple(d for i, d in enumerate(library) if i % 6)))
    task = docstring_retrieval(files, 1000)
    assert len(task.test) == 1000
    recall = retrieve(task, RandomVectors(tokenizer, WIDTH))[0]
    assert recall.value == pytest.approx(0.13, abs=0.04)
    assert retrieve(task, TfIdf())[0].value > 2 * recall.value


def test_shuffled_labels_and_scores_leave_nothing_to_be_found(stsb, trec, tokenizer):
    rng = np.random.default_rng(0)
    reader = RandomVectors(tokenizer, WIDTH)
    scores = rng.permutation([p.score for p in stsb.test])
    shuffled = stsb._replace(
        test=tuple(p._replace(score=float(s)) for p, s in zip(stsb.test, scores, strict=True))
    )
    assert abs(grade(shuffled, reader)[0].value) < 3 / len(stsb.test) ** 0.5
    labels = rng.permutation([e.label for e in trec.train])
    train = tuple(e._replace(label=str(y)) for e, y in zip(trec.train, labels, strict=True))
    (row, *_) = probe(trec._replace(train=train), reader, PROBING)
    most = max(Counter(e.label for e in trec.test).values()) / len(trec.test)
    assert row.value < most + 3 * (most * (1 - most) / row.n) ** 0.5


def test_japanese_pairs_that_share_a_sentence_with_dev_are_left_out(tokenizer):
    task = similarity(Graded(name="jsts", dev=shared("jsts_valid"), test=shared("jsts_test")))
    assert "33 test items left out" in task.note
    assert grade(task, TfIdf())[0].value > 0.6
    assert 0.3 < grade(task, RandomVectors(tokenizer, 64))[0].value < 0.8


def test_topics_and_authors_are_read_without_what_is_dropped():
    wiki = Labelled(
        name="topics",
        train=shared("wiki_vital_topics_en"),
        drop=("Uncategorized",),
        train_items=600,
        test_items=300,
    )
    task = classification(wiki)
    assert "Uncategorized" not in {e.label for part in (task.train, task.dev, task.test) for e in part}
    row = probe(task, TfIdf(), PROBING)[0]
    assert row.n == 300 and row.value > 0.5
    authors = classification(
        Labelled(name="authors", train=shared("aozora_author20_ja"), train_items=400, test_items=200)
    )
    assert len({e.label for e in authors.train}) == 20
    assert probe(authors, TfIdf(), PROBING)[0].value > 0.3
