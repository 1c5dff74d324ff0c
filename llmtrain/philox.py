"""Addressed randomness: a draw is a pure function of (seed, purpose, epoch, index), so there is no stream to save."""

import hashlib

import numpy as np

_MASK64 = (1 << 64) - 1


def _key(seed: int, purpose: str) -> tuple[int, int]:
    # blake2b and not hash(): Python salts the hashes of strings anew in every process
    word = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return seed & _MASK64, word


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """A generator at an address of its own: no two addresses share a draw (Philox 4x64, Salmon et al. 2011).

    The key is (seed, purpose); (epoch, index) are the two high words of the counter, which leaves 2^128 draws to each.
    """
    counter = [0, 0, index & _MASK64, epoch & _MASK64]
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


def draw_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for a library that only takes an integer (torch's generators), derived from an address."""
    return int(generator(seed, purpose).integers(0, 1 << 63))
