"""Parts of the road from documents to shards: copies and their windows, text by weight, shards of a mix."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from corpora import documents_of, prose, write_documents
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.dedup import mark_duplicates
from llmtrain.data.neighbours import windows
from llmtrain.data.prepare import prepare
from llmtrain.data.spool import INDEX, Spool, open_index, spool_documents
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.data.training_text import training_text
from llmtrain.philox import generator


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_duplicates_found_on_disk_are_those_found_in_memory(tmp_path, n):
    rng = generator(0, "hashes")
    index = np.zeros(n, INDEX)
    index["high"] = rng.integers(0, 1 << 63, 40, np.uint64)[rng.integers(0, 40, n)] << np.uint64(1)
    index["low"] = rng.integers(0, 40, n)
    seen: set[tuple[int, int]] = set()
    expected = []
    for pair in zip(index["high"].tolist(), index["low"].tolist(), strict=True):
        expected.append(pair in seen)
        seen.add(pair)
    assert mark_duplicates(index, tmp_path, in_memory=100).tolist() == expected


def test_windows_are_shared_whatever_the_indentation_and_blank_lines():
    text = b"a\nb\nc\nd\ne\n"
    assert len(windows(text)) == 2
    assert windows(b"  a\r\n\n\tb\nc\n\n\nd  \ne").tolist() == windows(text).tolist()
    assert np.isin(windows(b"x\na\nb\nc\nd\ny\n"), windows(text)).sum() == 1
    assert len(windows(b"a\nb\n")) == len(windows(b"a")) == 1
    assert len(windows(b" \n\n")) == 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_tokenizer_is_trained_on_parts_by_weight_the_small_ones_again(tmp_path, stack):
    spooled = {}
    for name, n_lines in (("large", 9000), ("small", 90)):
        folder = tmp_path / name
        folder.mkdir()
        source = write_documents(
            tmp_path / f"{name}.jsonl", [name + prose(i, n_lines // 9) for i in range(9)]
        )
        spool_documents(Corpus(source=source), folder, lambda done, total: None)
        spooled[name] = stack.enter_context(Spool(folder)), open_index(folder / "index")
    total = sum(int(index["bytes"].sum()) for _, index in spooled.values())
    shares = {"large": 0.75, "small": 0.25}
    given = Counter[str]()
    for text in training_text(spooled, shares):
        given[text[:5]] += len(text)
        if given.total() > total // 2:  # in proportion all the way, so that a reader may stop where it likes
            assert given["large"] / given.total() == pytest.approx(0.75, abs=0.15)
    assert total <= given.total() < total + 80_000
    assert given["large"] / given.total() == pytest.approx(0.75, abs=0.05)


def test_a_mix_has_shards_of_each_part_under_one_tokenizer(tmp_path):
    parts = {
        name: Corpus(
            source=write_documents(tmp_path / f"{name}.jsonl", [prose(seed + i, 200) for i in range(20)])
        )
        for name, seed in (("a", 0), ("b", 100))
    }
    mix = Mix(components=parts, weights={"a": 1, "b": 3}, cache=str(tmp_path / "cache"))
    tokenizer = SentencePiece(vocab_size=400, n_sentinels=0, max_training_bytes=50_000)
    prepared = prepare(mix, tokenizer)
    assert [(part.name, part.weight) for part in prepared.train] == [("a", 0.25), ("b", 0.75)]
    assert list(prepared.validation) == ["a", "b"]
    for part in prepared.train:
        assert part.shards.tokenizer_hash == prepared.tokenizer.hash
        seed = {"a": 0, "b": 100}[part.name]
        own = {line for i in range(20) for line in prose(seed + i, 200).splitlines()}
        found = {line for text in documents_of(prepared, part.shards) for line in text.splitlines()}
        assert found < own
    assert prepare(mix, tokenizer).folder == prepared.folder
