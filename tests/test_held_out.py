"""What is held out for validation, or as a set by its name, is whole, known by its content, and not in training."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corpora import BYTES, documents_of, files_of, prose, write_documents
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.neighbours import windows
from llmtrain.data.prepare import prepare
from llmtrain.data.sources.python import HELD_OUT, StandardLibrary
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Makes the same corpus of 60 documents, about 3 MB, with any fields and cache."""
    source = write_documents(tmp_path / "a.jsonl", [prose(i, 1000) for i in range(60)])
    return lambda cache="cache", **fields: Corpus(source=source, cache=str(tmp_path / cache), **fields)


@pytest.fixture
def fine_grained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some twenty chunks, and progress told at each."""
    monkeypatch.setattr("llmtrain.data.prepare._slowed", lambda progress: progress or (lambda s, d, t: None))
    monkeypatch.setattr("llmtrain.data.encode._CHUNK", 1 << 17)


# --- what is held out


def test_train_and_validation_are_the_corpus_cut_in_two(corpus):
    prepared = prepare(corpus(), BYTES)
    train, validation = prepared.train[0].shards, prepared.validation["corpus"]
    expected = "".join(prose(i, 1000) for i in range(60))
    lines = Counter(expected.splitlines())
    found = [line for s in (train, validation) for d in documents_of(prepared, s) for line in d.splitlines()]
    assert Counter(found) == lines
    assert train.n_bytes + validation.n_bytes == len(expected)
    assert 200_000 <= validation.n_bytes < 300_000
    assert train.doc_bytes.max() <= 65_536
    assert validation.doc_bytes.max() <= 32_768
    owner = {line: i for i in range(60) for line in prose(i, 1000).splitlines()}
    held_out = Counter[int]()
    for text in documents_of(prepared, validation):
        held_out[owner[text.splitlines()[0]]] += len(text)
    assert max(held_out.values()) <= 32_768
    assert prepared.report["parts"]["corpus"]["documents"] == 60


def test_exact_copies_are_dropped_unless_they_are_wanted(tmp_path):
    originals = [prose(i, 50) for i in range(40)]
    source = write_documents(tmp_path / "a.jsonl", [*originals, *originals[:7], originals[0]])
    n_bytes = sum(map(len, originals))
    for deduplicate, expected, dropped in ((True, n_bytes, 8), (False, None, 0)):
        prepared = prepare(
            Corpus(source=source, cache=str(tmp_path / "cache"), deduplicate=deduplicate), BYTES
        )
        kept = prepared.train[0].shards.n_bytes + prepared.validation["corpus"].n_bytes
        assert prepared.report["parts"]["corpus"]["duplicate_documents"] == dropped
        assert kept == (expected or n_bytes + sum(map(len, [*originals[:7], originals[0]])))


def test_near_duplicates_stay_on_one_side(tmp_path):
    """Families of three: a text, one with a third of its lines changed, and one near to the second alone."""
    documents = []
    for i in range(100):
        lines = prose(i, 60).splitlines(True)
        second = lines[:30] + prose(1000 + i, 30).splitlines(True)
        third = second[30:] + prose(2000 + i, 30).splitlines(True)
        documents += ["".join(lines), "".join(second), "".join(third)]
    source = write_documents(tmp_path / "a.jsonl", documents)
    prepared = prepare(Corpus(source=source, cache=str(tmp_path / "cache"), validation_fraction=0.1), BYTES)
    train = np.concatenate([windows(t.encode()) for t in documents_of(prepared, prepared.train[0].shards)])
    held_out = documents_of(prepared, prepared.validation["corpus"])
    assert len(held_out) >= 20
    for text in held_out:
        assert not np.isin(windows(text.encode()), train).any()


@pytest.mark.parametrize("n_lines", [60, 300, 900, 20_000])
def test_one_file_of_ones_own_is_split_whatever_its_size(tmp_path, n_lines):
    path = tmp_path / "a.txt"
    path.write_text(prose(0, n_lines))
    prepared = prepare(Corpus(source=TextFiles(paths=str(path)), cache=str(tmp_path / "cache")), BYTES)
    n_bytes = path.stat().st_size
    assert min(200_000, n_bytes // 10) <= prepared.validation["corpus"].n_bytes <= max(400_000, 512)
    assert prepared.train[0].shards.n_bytes >= n_bytes // 2


def test_the_standard_library_holds_out_its_list_and_no_more_than_32_kb_of_a_file(tmp_path):
    prepared = prepare(Corpus(source=StandardLibrary(), cache=str(tmp_path)), BYTES)
    validation = prepared.validation["corpus"]
    assert len(HELD_OUT) <= validation.n_documents
    assert 250_000 < validation.n_bytes < 500_000
    assert validation.doc_bytes.max() <= 32_768
    assert "def sched" not in "".join(documents_of(prepared, validation))
    assert any("class scheduler:" in text for text in documents_of(prepared, validation))
    assert not any("class scheduler:" in text for text in documents_of(prepared, prepared.train[0].shards))


def test_no_more_than_max_bytes_are_read(corpus):
    for limit in (100_000, 1_000_000):
        report = prepare(corpus(max_bytes=limit), BYTES).report["parts"]["corpus"]
        assert limit - 100 < report["bytes"] <= limit


# --- sets that are held out by name


@pytest.fixture
def news(tmp_path: Path) -> TextFiles:
    """Three texts, one of them in ``corpus`` too, one twice, one long."""
    texts = [prose(7, 1000), prose(100, 50), prose(100, 50), prose(101, 2000)]
    return write_documents(tmp_path / "news.jsonl", texts)


def test_a_named_set_is_whole_but_for_copies_and_says_what_of_it_is_trained_on(corpus, news):
    prepared = prepare(corpus(held_out={"news": news}), BYTES)
    shards = prepared.held_out["news"]
    assert "".join(documents_of(prepared, shards)) == prose(7, 1000) + prose(100, 50) + prose(101, 2000)
    assert shards.doc_bytes.max() <= 65_536
    report = prepared.report["held_out"]["news"]
    expected = {"documents": 4, "duplicate_documents": 1, "also_in_training": 1, "tokens": shards.n_tokens}
    assert report.items() >= expected.items()
    assert list(prepared.validation) == ["corpus"]


def test_a_set_that_joins_leaves_the_corpus_alone_and_is_made_once(corpus, news, tmp_path):
    alone_with = prepare(corpus(), BYTES)
    before = files_of(alone_with.folder)
    times = {path: path.stat().st_mtime_ns for path in alone_with.folder.rglob("*")}
    stages: list[str] = []
    joined = prepare(corpus(held_out={"news": news}), BYTES, progress=lambda s, d, t: stages.append(s))
    assert set(stages) == {"held out: news"}
    assert (joined.folder, joined.fingerprint) == (alone_with.folder, alone_with.fingerprint)
    assert files_of(joined.folder) == before
    assert {path: path.stat().st_mtime_ns for path in joined.folder.rglob("*")} == times
    stages.clear()
    renamed = prepare(corpus(held_out={"olds": news}), BYTES, progress=lambda s, d, t: stages.append(s))
    assert not stages  # a set is known by its content
    assert renamed.held_out["olds"].fingerprint == joined.held_out["news"].fingerprint
    other = prepare(corpus(held_out={"news": news}), Bytes(n_sentinels=8))
    assert other.held_out["news"].folder != joined.held_out["news"].folder


@pytest.mark.parametrize("calls", [1, 2, 6])
def test_a_set_whose_preparation_is_killed_goes_on_and_ends_the_same(corpus, news, fine_grained, calls):
    whole = prepare(corpus("whole", held_out={"news": news}), BYTES).held_out["news"].folder
    told: list[str] = []

    def kill(now: str, done: int, total: int | None) -> None:
        told.append(now)
        if told.count("held out: news") == calls:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        prepare(corpus(held_out={"news": news}), BYTES, progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = prepare(corpus(held_out={"news": news}), BYTES).held_out["news"].folder
    assert files_of(again.parent) == files_of(whole.parent)


def test_paths_in_the_place_of_a_set_are_text_files(tmp_path):
    source = TextFiles(paths="a.txt")
    given = Corpus(source=source, held_out={"a": "a.txt", "b": ["b.txt", "c/*.txt"], "c": source})  # type: ignore[dict-item]
    assert given.held_out == {"a": source, "b": TextFiles(paths=("b.txt", "c/*.txt")), "c": source}


def test_what_is_wrong_with_a_set_is_said_of_the_set(corpus, tmp_path):
    with pytest.raises(
        DataError, match=r"held-out set news: .*nowhere\.txt.* correct data\.held_out\.news\.paths"
    ):
        prepare(corpus(held_out={"news": "nowhere.txt"}), BYTES)
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(DataError, match=r"held-out set news: .*empty.*data\.held_out\.news"):
        prepare(corpus(held_out={"news": str(tmp_path / "blank.txt")}), BYTES)
    for name in ("validation", "validation_a", "a b"):
        with pytest.raises(ValueError, match=rf"data\.held_out\.{name}"):
            corpus(held_out={name: "a.txt"})
    part = Corpus(source=corpus().source, held_out={"a": "a.txt"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"data\.components\.x\.held_out has no effect in a mix"):
        Mix(components={"x": part}, weights={"x": 1})
