"""The order of an epoch as a pure function: a random permutation that is never stored."""

from functools import lru_cache
from typing import overload

import numpy as np
from jaxtyping import Int64

from llmtrain.philox import generator

_MASK64 = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, without a pattern in its bits: 2^64 / golden ratio
_N_ROUNDS = 8


class Permutation:
    """A permutation of range(n) in O(1) memory: a Feistel network, with cycle walking down to n.

    A Feistel network permutes a power of two, whatever its round function (Luby and Rackoff 1988); a value that falls
    outside range(n) is put through it again until it falls inside (Black and Rogaway 2002), fewer than two passes on
    average. Takes an index or an array of indices.
    """

    def __init__(self, n: int, keys: list[int]) -> None:
        assert n >= 1
        bits = max(2, (n - 1).bit_length())
        self.n = n
        self._keys = keys
        self._low_bits = bits // 2
        self._low = (1 << self._low_bits) - 1
        self._high = (1 << (bits - self._low_bits)) - 1

    @overload
    def __call__(self, i: int) -> int: ...
    @overload
    def __call__(self, i: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]: ...
    def __call__(self, i: int | Int64[np.ndarray, " N"]) -> int | Int64[np.ndarray, " N"]:
        if isinstance(i, np.ndarray):
            return self._many(i)
        if not 0 <= i < self.n:
            raise IndexError(f"{i} is not in range({self.n})")
        i = self._pass(i)
        while i >= self.n:
            i = self._pass(i)
        return i

    def _pass(self, i: int) -> int:
        high, low = i >> self._low_bits, i & self._low
        for k in range(0, _N_ROUNDS, 2):
            high ^= _mix(low ^ self._keys[k]) & self._high
            low ^= _mix(high ^ self._keys[k + 1]) & self._low
        return high << self._low_bits | low

    def _many(self, i: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        if i.size and not (i.min() >= 0 and i.max() < self.n):
            raise IndexError(f"indices from {i.min()} to {i.max()} are not in range({self.n})")
        values = self._pass_many(i.astype(np.uint64))
        while (outside := np.flatnonzero(values >= self.n)).size:
            values[outside] = self._pass_many(values[outside])
        return values.astype(np.int64)

    def _pass_many(self, i: np.ndarray) -> np.ndarray:
        shift, low_mask, high_mask = (np.uint64(v) for v in (self._low_bits, self._low, self._high))
        high, low = i >> shift, i & low_mask
        for k in range(0, _N_ROUNDS, 2):
            high = high ^ (_mix_many(low ^ np.uint64(self._keys[k])) & high_mask)
            low = low ^ (_mix_many(high ^ np.uint64(self._keys[k + 1])) & low_mask)
        return high << shift | low


def _mix(x: int) -> int:
    x = x * _MULTIPLIER & _MASK64
    x = (x ^ x >> 32) * _MULTIPLIER & _MASK64
    return x ^ x >> 32


def _mix_many(x: np.ndarray) -> np.ndarray:
    multiplier, half = np.uint64(_MULTIPLIER), np.uint64(32)
    x = x * multiplier  # arrays wrap at 2^64
    x = (x ^ x >> half) * multiplier
    return x ^ x >> half


@lru_cache(maxsize=256)  # a reader stays within a few epochs, and within a few blocks of a mix
def permutation(n: int, seed: int, purpose: str, epoch: int) -> Permutation:
    """The permutation of range(n) at an address; another seed, purpose or epoch gives an unrelated one."""
    keys = generator(seed, purpose, epoch).integers(0, 1 << 64, size=_N_ROUNDS, dtype=np.uint64)
    return Permutation(n, [int(key) for key in keys])
