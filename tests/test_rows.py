"""Rows cover the shards once and tell documents apart; examples are made of them by address."""

import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.examples import Examples, RankRows, loader
from llmtrain.data.rows import DocumentRows, PackedRows, Stream
from llmtrain.data.shards import Shards, ShardWriter
from llmtrain.errors import DataError
from llmtrain.types import BOS, NO_DOC, PAD, Row, Vocab

LENGTHS = [5, 0, 40, 1, 1, 17, 100, 3]


def write(folder: Path, lengths: list[int]) -> Shards:
    no = np.zeros(1000, dtype=bool)
    with ShardWriter(folder, Vocab(1000, 16, np.ones(1000, dtype=np.int32), no, no), {}) as writer:
        for number, length in enumerate(lengths):
            writer.add(np.arange(length) + 16 + number * 100, length)
    return Shards.open(folder)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return write(tmp_path / "s", LENGTHS)


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("raw_len", [4, 9, 33])
def test_padded_rows_cover_every_token_once(shards: Shards, raw_len: int, overlap: int) -> None:
    rows = PackedRows(shards, raw_len, overlap=overlap, tail=True)
    parts = [rows[i] for i in range(rows.n_rows)]
    assert all(len(row.ids) == len(row.doc) == raw_len for row in parts)
    covered = np.concatenate([parts[0].ids[:overlap], *[row.ids[overlap:] for row in parts]])
    real = np.concatenate([parts[0].doc[:overlap], *[row.doc[overlap:] for row in parts]]) != NO_DOC
    assert np.array_equal(covered[real], shards.tokens)
    assert np.all(covered[~real] == PAD) and not real[shards.n_tokens :].any()
    for one, other in pairwise(parts):
        assert np.array_equal(one.ids[raw_len - overlap :], other.ids[:overlap])


def test_dropping_the_tail_keeps_all_whole_rows(shards: Shards) -> None:
    whole, padded = PackedRows(shards, 9, overlap=1), PackedRows(shards, 9, overlap=1, tail=True)
    assert whole.n_rows == (shards.n_tokens - 1) // 8
    for i in range(whole.n_rows):
        assert all(np.array_equal(a, b) for a, b in zip(whole[i], padded[i], strict=True))
        assert NO_DOC not in whole[i].doc
    for outside in (-1, whole.n_rows):
        with pytest.raises(IndexError):
            whole[outside]


def test_document_numbers_follow_the_offsets_and_begin_at_0(shards: Shards) -> None:
    rows = PackedRows(shards, 9, overlap=1)
    for i in range(rows.n_rows):
        places = np.arange(i * 8, i * 8 + 9)
        number = np.searchsorted(shards.offsets, places, side="right") - 1
        assert np.array_equal(rows[i].doc, number - number[0])
        assert rows[i].ids.dtype == rows[i].doc.dtype == np.int64


def test_without_isolation_a_row_is_one_document(shards: Shards) -> None:
    rows = PackedRows(shards, 50, isolate=False, tail=True)
    last = rows[rows.n_rows - 1]
    assert np.all(rows[0].doc == 0)
    assert np.array_equal(last.doc == NO_DOC, np.arange(50) >= shards.n_tokens % 50)


@pytest.mark.fault("F28")
def test_fewer_tokens_than_a_row_are_refused_with_numbers(shards: Shards) -> None:
    n = shards.n_tokens
    assert PackedRows(shards, n, overlap=1).n_rows == 1
    with pytest.raises(DataError, match=f"{n} tokens are fewer than one row of {n + 1}; .*seq_len"):
        PackedRows(shards, n + 1, overlap=1)
    assert PackedRows(shards, n + 1, overlap=1, tail=True).n_rows == 1


@pytest.mark.parametrize("raw_len", [4, 10, 41, 200])
def test_a_document_row_is_one_document_from_its_bos(shards: Shards, raw_len: int) -> None:
    rows = DocumentRows(shards, raw_len, min_len=4)
    content: dict[int, list[int]] = {}
    for i in range(rows.n_rows):
        ids, doc, _ = rows[i]
        real = doc != NO_DOC
        assert len(ids) == raw_len and ids[0] == BOS and BOS not in ids[1:]
        assert np.all(ids[~real] == PAD) and real.sum() >= 4 and len(set(doc[real])) == 1
        content.setdefault(int(doc[0]), []).extend(ids[real][1:].tolist())
    for number, tokens in content.items():
        start, end = shards.offsets[number : number + 2]
        document = shards.tokens[start + 1 : end].tolist()
        assert tokens == document[: len(tokens)] and len(document) - len(tokens) < 3
    assert rows.n_skipped == sum(length + 1 < 4 for length in LENGTHS) == len(LENGTHS) - len(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda shards: PackedRows(shards, 9, overlap=1),
        lambda shards: PackedRows(shards, 9, overlap=1, tail=True),
        lambda shards: PackedRows(shards, 7),
        lambda shards: DocumentRows(shards, 10, min_len=4),
        lambda shards: DocumentRows(shards, 200, min_len=4),
    ],
)
def test_the_tokens_of_an_epoch_are_those_that_its_rows_add(shards: Shards, make) -> None:
    rows = make(shards)
    overlap = 1 if isinstance(rows, PackedRows) and rows[0].ids.size == 9 else 0
    added = [int((rows[i].doc[overlap:] != NO_DOC).sum()) for i in range(rows.n_rows)]
    assert sum(added) == rows.n_tokens == pytest.approx(rows.tokens_per_row * rows.n_rows)
    assert [rows[i].number for i in range(rows.n_rows)] == list(range(rows.n_rows))


def test_documents_of_two_parts_can_be_told_apart(shards: Shards) -> None:
    one = DocumentRows(shards, 10, min_len=4)
    other = DocumentRows(shards, 10, min_len=4, first_document=shards.n_documents)
    numbers = [{int(rows[i].doc[0]) for i in range(rows.n_rows)} for rows in (one, other)]
    assert not numbers[0] & numbers[1]
    assert other[0].doc[-1] == NO_DOC  # padding keeps its own


@pytest.mark.fault("F28")
def test_documents_that_are_all_too_short_are_refused_with_numbers(shards: Shards) -> None:
    with pytest.raises(DataError, match=r"none of 8 documents has the 150 tokens .*the longest has 101"):
        DocumentRows(shards, 200, min_len=150)


# --- examples


class Seen:
    """An objective of which an example says who made it, of which row, and with what draw."""

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> tuple:
        return np.array(os.getpid()), np.array(row.number), row.ids, np.array(rng.integers(1 << 62))


def examples_of(parts: dict[str, PackedRows], vocab: Vocab) -> Examples:
    stream = Stream(list(parts.values()), [1.0] * len(parts), 5, names=list(parts))
    return Examples(list(parts.values()), stream, Seen(), vocab, seq_len=8, seed=5)


def test_an_example_knows_the_number_of_its_row_in_the_run(shards: Shards) -> None:
    examples = examples_of({"a": PackedRows(shards, 9, overlap=1)}, shards.vocab)
    assert [int(examples[k][1]) for k in range(100)] == list(range(100))  # five epochs


def test_what_a_part_is_corrupted_by_does_not_depend_on_what_it_is_mixed_with(shards: Shards) -> None:
    rows = PackedRows(shards, 9, overlap=1)
    alone = examples_of({"a": rows}, shards.vocab)
    mixed = examples_of({"b": rows, "a": rows}, shards.vocab)
    draws: list[dict[tuple[int, int], int]] = [{}, {}]  # by part: (epoch, row) to what was drawn
    for k in range(1024):
        part, *address = mixed.stream.locate(k)
        draws[part][tuple(address)] = int(mixed[k][3])
    b, a = draws
    epoch = range(rows.n_rows)
    assert all(a[alone.stream.locate(k)[1:]] == int(alone[k][3]) for k in epoch)
    assert not {*a.values()} & {*b.values()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_a_loaders_worker_does_not_end_it(shards: Shards, number: signal.Signals) -> None:
    examples = examples_of({"a": PackedRows(shards, 9, overlap=1)}, shards.vocab)
    order = RankRows(n_rows=60, micro_rows=2, rank=0, world=1)
    batches = iter(loader(examples, order, workers=1))
    worker = int(next(batches)[0][0])
    assert worker != os.getpid()
    os.kill(worker, number)
    rest = list(batches)
    assert len(rest) == 29
    assert {int(pid) for batch in rest for pid in batch[0]} == {worker}
