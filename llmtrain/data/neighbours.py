"""Near-duplicates of a few texts among many: shared windows of lines, counted in one pass over the many."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import xxhash

LINES = 4  # of a window
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no line of a window is lost modulo 2^64


def windows(text: bytes) -> np.ndarray:
    """The distinct hashes (uint64, sorted) of every ``LINES`` consecutive lines, blank ones and indentation aside.

    A text of fewer lines is one window.
    """
    stripped = (line.strip() for line in text.split(b"\n"))
    lines = np.array([xxhash.xxh3_64_intdigest(line) for line in stripped if line], np.uint64)
    width = min(LINES, len(lines))
    n = len(lines) - width + 1 if width else 0
    hashes = np.full(n, width, np.uint64)  # a short text equals no window of a long one
    for i in range(width):
        hashes = hashes * _FACTOR + lines[i : i + n]
    return np.unique(hashes)


class Near(NamedTuple):
    tainted: np.ndarray  # [candidates] bool: near to one of the many, or joined to a candidate that is
    group: np.ndarray  # [candidates] int64: candidates near to each other, by the smallest index among them


class Candidates:
    """An index from window to the candidates that have it."""

    def __init__(self, texts: Iterable[bytes], share: float) -> None:
        """``share`` of the windows of either text, above which two are near."""
        self._share = share
        self._windows = [windows(text) for text in texts]
        self._counts = np.array([len(w) for w in self._windows], np.int64)
        flat = np.concatenate([np.zeros(0, np.uint64), *self._windows])
        order = np.argsort(flat, kind="stable")
        self._flat = flat[order]
        self._owners = np.repeat(np.arange(len(self._counts)), self._counts)[order]

    def near(self, others: Iterable[bytes]) -> Near:
        """Which candidates are near to any of ``others``, and which to each other."""
        leader = list(range(len(self._windows)))

        def find(i: int) -> int:
            while leader[i] != i:
                leader[i] = leader[leader[i]]
                i = leader[i]
            return i

        for i, own in enumerate(self._windows):
            for j in self._near_to(own).tolist():
                a, b = sorted((find(i), find(j)))
                leader[b] = a
        group = np.array([find(i) for i in range(len(leader))], np.int64)
        tainted = np.zeros(len(leader), bool)
        for other in others:
            tainted[self._near_to(windows(other))] = True
        return Near(np.isin(group, group[tainted]), group)

    def _near_to(self, other: np.ndarray) -> np.ndarray:
        """Indices of the candidates near to a text with these windows."""
        first = np.searchsorted(self._flat, other, "left")
        last = np.searchsorted(self._flat, other, "right")
        hits = [self._owners[a:b] for a, b in zip(first, last, strict=True) if a < b]
        if not hits:
            return np.zeros(0, np.int64)
        candidates, shared = np.unique(np.concatenate(hits), return_counts=True)
        return candidates[shared > self._share * np.minimum(len(other), self._counts[candidates])]
