"""Rows cover the shards once, tell documents apart, and come in an order that is a pure function of the seed."""

import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.examples import Examples, RankRows, loader
from llmtrain.data.order import Permutation, permutation
from llmtrain.data.rows import DocumentRows, PackedRows, Stream, apportion
from llmtrain.data.shards import Shards, ShardWriter
from llmtrain.errors import ConfigError, DataError
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


def whole(order: Permutation) -> np.ndarray:
    return np.array([order(i) for i in range(order.n)])


@pytest.mark.fault("F27")
@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 1024, 1025])
def test_an_epoch_is_a_permutation(n: int) -> None:
    for epoch in range(3):
        order = permutation(n, 7, "order", epoch)
        assert sorted(order(i) for i in range(n)) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 100, 12345, 10**9 + 7, (1 << 62) + 1])
def test_an_order_of_any_length_keeps_places_apart_and_within(n: int) -> None:
    order = permutation(n, 3, "order", 1)
    places = [order(i * (n - 1) // 200) for i in range(201)]
    assert all(0 <= place < n for place in places)
    assert len(set(places)) == min(n, 201)
    for outside in (-1, n):
        with pytest.raises(IndexError):
            order(outside)


def test_another_seed_purpose_or_epoch_gives_another_order() -> None:
    addresses = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    orders = [whole(permutation(10_000, *address)) for address in addresses]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 10  # one in 10,000 by chance


@pytest.mark.parametrize("n", [3, 5, 6, 16, 37])
def test_every_pair_of_places_is_equally_likely(n: int) -> None:
    """Chi-squared over the places of two neighbours, at most five standard deviations above its mean."""
    draws = 4000
    counts = np.zeros((n, n))
    for epoch in range(draws):
        order = permutation(n, 0, "pairs", epoch)
        counts[order(0), order(1)] += 1
    expected = draws / (n * (n - 1))
    off_diagonal = counts[~np.eye(n, dtype=bool)]
    chi2, freedom = ((off_diagonal - expected) ** 2 / expected).sum(), n * (n - 1) - 1
    assert counts.trace() == 0
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_long_order_looks_random() -> None:
    n = 100_000
    order = whole(permutation(n, 0, "order", 0))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(n)
    ascents = np.count_nonzero(order[1:] > order[:-1])
    assert abs(ascents - n / 2) < 5 * np.sqrt(n / 12)
    fixed_points = np.count_nonzero(order == np.arange(n))
    assert fixed_points < 12  # Poisson with mean 1


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


class Counted:
    """Rows of which only the number matters."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = self.n_tokens = n_rows
        self.tokens_per_row = 1.0

    def __getitem__(self, i: int) -> Row:
        raise AssertionError("the order looks at no row")


@pytest.mark.fault("F27")
def test_one_part_is_read_by_epochs_each_in_its_own_order() -> None:
    stream = Stream([Counted(37)], [1.0], seed=5)
    addresses = [stream.locate(k) for k in range(37 * 3)]
    orders = [[a.row for a in addresses if a.epoch == epoch] for epoch in range(3)]
    assert [a.epoch for a in addresses] == [k // 37 for k in range(37 * 3)]
    assert all(sorted(order) == list(range(37)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.fault("F27")
def test_a_mix_has_exact_proportions_in_every_block_and_loses_no_row() -> None:
    parts = [Counted(100), Counted(3000), Counted(7)]
    stream = Stream(parts, [1.0, 2.5, 0.1], seed=5)
    addresses = [stream.locate(k) for k in range(4 * 1024)]
    counts = apportion([1.0, 2.5, 0.1], 1024)
    for block in range(4):
        inside = [a.part for a in addresses[block * 1024 : (block + 1) * 1024]]
        assert tuple(inside.count(part) for part in range(3)) == counts
    for part, rows in enumerate(parts):
        reads = [(a.epoch, a.row) for a in addresses if a.part == part]
        assert len(set(reads)) == len(reads) == 4 * counts[part]
        for epoch in range(len(reads) // rows.n_rows):  # every whole epoch reads every row
            assert sorted(row for e, row in reads if e == epoch) == list(range(rows.n_rows))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.5, 0.1]])
def test_what_was_consumed_of_each_part_is_what_the_order_gave(weights: list[float]) -> None:
    stream = Stream([Counted(37) for _ in weights], weights, seed=5)
    counts = [0] * len(weights)
    for rows in range(3000):
        if rows % 100 == 0 or rows % 1024 < 3:
            assert stream.consumed(rows) == tuple(counts)
        counts[stream.locate(rows).part] += 1


def test_the_order_is_a_pure_function_of_the_row_number_and_the_seed() -> None:
    def addresses(seed: int, rows: range) -> list[tuple[int, int, int]]:
        stream = Stream([Counted(50), Counted(70)], [1.0, 1.0], seed, names=["a", "b"])
        return [stream.locate(k) for k in rows]

    assert addresses(1, range(3000))[1500:] == addresses(1, range(1500, 3000))
    assert addresses(1, range(100)) != addresses(2, range(100))


def test_a_part_keeps_its_order_when_another_joins() -> None:
    alone = Stream([Counted(50)], [1.0], 1, names=["a"])
    mixed = Stream([Counted(9), Counted(50)], [1.0, 3.0], 1, names=["b", "a"])
    order = {a.row for k in range(1024) if (a := mixed.locate(k)).part == 1 and a.epoch == 0}
    assert order == {alone.locate(k).row for k in range(50)}


def test_seats_go_by_largest_remainder() -> None:
    assert apportion([1.0, 1.0, 1.0], 1024) == (342, 341, 341)
    assert apportion([0.5, 0.25, 0.25], 1024) == (512, 256, 256)
    assert apportion([3.0], 1) == (1,)
    for weights in ([0.7, 0.2, 0.1], [1e-3, 5.0], [9.0, 8.0, 7.0, 6.0, 5.0]):
        seats = apportion(weights, 1024)
        assert sum(seats) == 1024
        assert all(abs(s - w / sum(weights) * 1024) < 1 for s, w in zip(seats, weights, strict=True))


def test_weights_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight of 'tiny' is less than 1/1024"):
        Stream([Counted(5), Counted(5)], [1.0, 1e-6], 0, names=["big", "tiny"])
    for weights in ([0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ConfigError, match="must not be negative"):
            Stream([Counted(5), Counted(5)], weights, 0)


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
