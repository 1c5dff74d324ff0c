"""What is wrong with a corpus as a whole, or with its cache, gets one clear line and leaves nothing half made."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inputs import written
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.prepare import Progress, prepare
from llmtrain.data.sources.base import Source
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import DataError, StorageError


def preparing(tmp_path: Path, source: Source, progress: Progress | None = None, **fields) -> None:
    corpus = Corpus(source=source, cache=str(tmp_path / "cache"), **fields)
    prepare(corpus, Bytes(n_sentinels=0), progress=progress)


def test_an_empty_corpus_says_what_was_left_out_and_leaves_nothing(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": ""}\n{"text": null}\n')
    with pytest.raises(DataError, match=r"empty: 1 empty document \(first: .*a\.jsonl:1\), 1 missing text"):
        preparing(tmp_path, TextFiles(paths=str(path)))
    assert not [
        p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix not in (".json", ".lock")
    ]


def test_a_corpus_too_small_to_split_says_how_many_bytes_it_has(tmp_path):
    path = written(tmp_path / "a.txt", "a short text\n")
    with pytest.raises(DataError, match=r"13 bytes, too few to split.*at least 1,024"):
        preparing(tmp_path, TextFiles(paths=str(path)))


def test_a_corpus_of_near_duplicates_alone_names_the_rule(tmp_path):
    path = written(tmp_path / "a.txt", "the same line\nand another\nand a third\nand the last\n" * 500)
    with pytest.raises(DataError, match=r"near duplicates of each other.*near_duplicate=1"):
        preparing(tmp_path, TextFiles(paths=str(path)))
    preparing(tmp_path, TextFiles(paths=str(path)), near_duplicate=1)


@pytest.mark.fault("F25")
def test_a_file_that_changes_while_it_is_prepared_is_noticed(tmp_path):
    path = written(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(5000)))
    corpus = Corpus(source=TextFiles(paths=str(path)), cache=str(tmp_path / "cache"))

    def append(stage: str, done: int, total: int | None) -> None:
        if stage == "split":
            path.write_text(path.read_text() + "more\n")

    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(corpus, Bytes(n_sentinels=0), progress=append)
    prepare(corpus, Bytes(n_sentinels=0))


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """What a full disk looks like to this process and those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("limit", "workers", "kept"),
    [(400_000, 1, False), (3_500_000, 1, True), (3_500_000, 2, True)],  # while reading; in the first chunk
)
def test_a_full_disk_is_told_and_what_was_finished_is_gone_on_with(tmp_path, limit, workers, kept):
    path = written(
        tmp_path / "a.txt", "".join(f"line {i} of a text, {i * i} and so on\n" for i in range(80_000))
    )
    source, cache = TextFiles(paths=str(path)), tmp_path / "cache"
    with pytest.raises(StorageError) as caught, files_of_at_most(limit):
        preparing(tmp_path, source, workers=workers)
    assert "\n" not in str(caught.value)
    assert "File too large" in str(caught.value)
    assert "free" in str(caught.value)
    assert not list(cache.rglob("*.tmp"))
    documents = list(cache.rglob("documents/text"))
    assert bool(documents) == kept
    made = []
    preparing(tmp_path, source, progress=lambda stage, done, total: made.append(stage))
    assert ("read" in made) != kept


def test_a_cache_that_cannot_be_a_folder_is_named(tmp_path):
    written(tmp_path / "cache", "a file is in the way")
    path = written(tmp_path / "a.txt", "text")
    with pytest.raises(StorageError, match=r"cache.*data\.cache"):
        preparing(tmp_path, TextFiles(paths=str(path)))


# --- configs


def test_impossible_configs_are_refused_by_key(tmp_path):
    source = TextFiles(paths="a.txt")
    corpus = Corpus(source=source)
    with pytest.raises(ValueError, match=r"data\.validation_fraction"):
        Corpus(source=source, validation_fraction=0.9)
    with pytest.raises(ValueError, match=r"data\.near_duplicate"):
        Corpus(source=source, near_duplicate=0)
    with pytest.raises(ValueError, match=r"data\.workers=0"):
        Corpus(source=source, workers=0)
    with pytest.raises(ValueError, match=r"weights names a, but data\.components names a, b"):
        Mix(components={"a": corpus, "b": corpus}, weights={"a": 1})
    with pytest.raises(ValueError, match=r"data\.weights\.a=0"):
        Mix(components={"a": corpus}, weights={"a": 0})
    with pytest.raises(ValueError, match=r"data\.components\.a\.cache"):
        Mix(components={"a": Corpus(source=source, cache="elsewhere")}, weights={"a": 1})
    assert json.dumps(Mix(components={"a": corpus}, weights={"a": 1}).weights) == '{"a": 1.0}'
