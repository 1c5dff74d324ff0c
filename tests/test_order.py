"""Rows come in an order that is a pure function of the seed: every epoch all of them, every mix in proportion."""

import numpy as np
import pytest

from llmtrain.data.order import Permutation, permutation
from llmtrain.data.rows import Stream, apportion
from llmtrain.errors import ConfigError
from llmtrain.types import Row


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
