"""The order of an epoch as a pure function: a random permutation that is never stored."""

from functools import lru_cache

import numpy as np

from llmtrain.philox import generator

_MASK64 = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, without a pattern in its bits: 2^64 / golden ratio
_N_ROUNDS = 8  # even, so that the halves end where they began
_LEAST_BITS = 6  # halves of one or two bits do not mix


class Permutation:
    """A permutation of range(n) in O(1) memory: a Feistel network, with cycle walking down to n.

    A Feistel network permutes a power of two, whatever its round function (Luby and Rackoff 1988); a value that falls
    outside range(n) is put through it again until it falls inside (Black and Rogaway 2002): fewer than two passes on
    average, but for tiny n.
    """

    def __init__(self, n: int, keys: list[int]) -> None:
        assert n >= 1
        bits = max(_LEAST_BITS, (n - 1).bit_length())
        self.n = n
        self._low_bits = bits // 2
        self._low = (1 << self._low_bits) - 1
        high = (1 << (bits - self._low_bits)) - 1
        self._rounds = [(key, self._low if k % 2 else high) for k, key in enumerate(keys)]

    def __call__(self, i: int) -> int:
        if not 0 <= i < self.n:
            raise IndexError(f"{i} is not in range({self.n})")
        i = self._pass(i)
        while i >= self.n:
            i = self._pass(i)
        return i

    def _pass(self, i: int) -> int:
        one, other = i >> self._low_bits, i & self._low
        for key, mask in self._rounds:
            x = (other ^ key) * _MULTIPLIER & _MASK64
            x = (x ^ x >> 32) * _MULTIPLIER & _MASK64
            one, other = other, one ^ (x ^ x >> 32) & mask
        return one << self._low_bits | other


@lru_cache(maxsize=256)  # a reader stays within a few epochs, and within a few blocks of a mix
def permutation(n: int, seed: int, purpose: str, epoch: int) -> Permutation:
    """The permutation of range(n) at an address; another seed, purpose or epoch gives an unrelated one."""
    keys = generator(seed, purpose, epoch).integers(0, 1 << 64, size=_N_ROUNDS, dtype=np.uint64)
    return Permutation(n, [int(key) for key in keys])
