"""Addressed randomness: a draw is a pure function of (seed, purpose, epoch, index), so there is no stream to save."""

import hashlib

import numpy as np

_MASK64 = (1 << 64) - 1


def _words(*numbers: int) -> np.ndarray:
    # typed, since numpy makes float64 of a list with numbers on both sides of 2^63, and drops their low bits
    return np.array([number & _MASK64 for number in numbers], dtype=np.uint64)


def _hash(purpose: str) -> int:
    # blake2b and not hash(): Python salts the hashes of strings anew in every process
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """A generator at an address of its own: no two addresses share a draw (Philox 4x64, Salmon et al. 2011).

    The key is (seed, purpose); (epoch, index) are the two high words of the counter, which leaves 2^128 draws to each.
    """
    key, counter = _words(seed, _hash(purpose)), _words(0, 0, index, epoch)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for a library that only takes an integer (torch's generators), derived from an address."""
    return int(generator(seed, purpose).integers(0, 1 << 63))
