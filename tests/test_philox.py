"""Randomness is addressed: an address is its draws, and no two addresses share any."""

import itertools
import subprocess
import sys

import numpy as np

from llmtrain import philox

ADDRESSES = list(
    itertools.product((0, 1, -1, 2**63), ("order", "example", "init a"), (0, 1, 2), (0, 1, 7, 2**40))
)


def test_an_address_gives_the_same_draws_in_any_order_of_asking():
    forward = [philox.generator(*address).integers(1 << 62, size=4).tolist() for address in ADDRESSES]
    backward = [
        philox.generator(*address).integers(1 << 62, size=4).tolist() for address in reversed(ADDRESSES)
    ]
    assert forward == backward[::-1]


def test_addresses_share_no_draw():
    words = np.concatenate([philox.generator(*address).integers(1 << 63, size=500) for address in ADDRESSES])
    assert len(np.unique(words)) == len(words)


def test_every_bit_of_the_address_counts():
    """Also above 2^53, where a float64 would round it away."""
    large = [2**62, 2**62 + 1, 2**63, 2**63 + 1, 2**64 - 1]
    first = [
        philox.generator(*address).random()
        for n in large
        for address in ((n, "x"), (0, "x", n), (0, "x", 0, n))
    ]
    assert len(set(first)) == len(first)


def test_neighbouring_addresses_are_not_correlated():
    draws = np.stack([philox.generator(0, "x", 0, i).standard_normal(4000) for i in range(12)])
    off = np.corrcoef(draws)[~np.eye(12, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(4000)


def test_another_process_draws_the_same():
    """Python salts the hashes of strings in each process, and must not get in here."""
    code = "from llmtrain import philox; print(philox.draw_seed(3, 'init a'), philox.generator(3, 'x', 1, 2).random())"
    said = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert said == {f"{philox.draw_seed(3, 'init a')} {philox.generator(3, 'x', 1, 2).random()}\n"}


def test_a_drawn_seed_fits_torchs_generators():
    seeds = [philox.draw_seed(seed, purpose) for seed in range(50) for purpose in ("a", "b")]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 1 << 63 for seed in seeds)
