"""Exact duplicates among any number of documents: 16-byte hashes sorted on disk, in memory that does not grow."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmtrain.data.spool import blocks

_PAIR = np.dtype([("high", "<u8"), ("low", "<u8")])
_HASH = np.dtype([("high", "<u8"), ("low", "<u8"), ("ordinal", "<u8")])
_IN_MEMORY = 1 << 22  # records sorted at once, about: 100 MB
_MAX_BITS = 9  # as many open files as any system allows


def mark_duplicates(index: np.ndarray, scratch: Path, *, in_memory: int = _IN_MEMORY) -> np.ndarray:
    """For each record of ``index``, whether an earlier one has the same hash: bool, on disk under ``scratch``.

    Records go into buckets by the leading bits of their hash, each small enough to be sorted in memory: equal
    hashes meet in one bucket. Hashes of 128 bits are taken for the texts themselves.
    """
    if len(index) == 0:
        return np.zeros(0, bool)
    bits = min((2 * len(index) // in_memory).bit_length(), _MAX_BITS)
    buckets = scratch / "buckets"
    buckets.mkdir()
    _distribute(index, buckets, bits)
    duplicate = np.memmap(scratch / "duplicates", bool, "w+", shape=(len(index),))
    for bucket in buckets.iterdir():
        records = np.fromfile(bucket, _HASH)
        order = np.lexsort((records["ordinal"], records["low"], records["high"]))
        high, low = records["high"][order], records["low"][order]
        same = np.zeros(len(order), bool)
        same[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        duplicate[records["ordinal"][order[same]]] = True
    shutil.rmtree(buckets)
    return duplicate


def keep_hashes(index: np.ndarray, kept: np.ndarray, path: Path) -> None:
    """Write the hashes of the ``kept`` records of ``index`` (a mask), in their order, for ``count_copies``."""
    partial, first = path.with_name(path.name + ".tmp"), 0
    with partial.open("wb") as file:
        for block in blocks(index):
            mine = block[kept[first : first + len(block)]]
            pairs = np.empty(len(mine), _PAIR)
            pairs["high"], pairs["low"] = mine["high"], mine["low"]
            file.write(pairs.tobytes())
            first += len(block)
    partial.rename(path)


def count_copies(hashes: Path, of: Iterable[Path]) -> int:
    """How many of the distinct ``hashes`` are among those of the other files; only the first are all in memory."""
    mine = np.fromfile(hashes, _PAIR)
    wanted, found = set(mine.tolist()), set[tuple[int, int]]()
    for other in of:
        if other.stat().st_size:  # an empty file cannot be mapped
            for block in blocks(np.memmap(other, _PAIR, "r")):
                found |= wanted & set(block[np.isin(block["high"], mine["high"])].tolist())
    return len(found)


def _distribute(index: np.ndarray, folder: Path, bits: int) -> None:
    """Append each record's hash and ordinal to the file of its bucket."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{b:05d}").open("wb")) for b in range(1 << bits)]
        first = 0
        for block in blocks(index):
            records = np.empty(len(block), _HASH)
            records["high"], records["low"] = block["high"], block["low"]
            records["ordinal"] = np.arange(first, first + len(block))
            bucket = records["high"] >> np.uint64(64 - bits) if bits else np.zeros(len(block), np.uint64)
            order = np.argsort(bucket, kind="stable")
            edges = np.searchsorted(bucket[order], np.arange((1 << bits) + 1, dtype=np.uint64))
            for b in range(1 << bits):
                files[b].write(records[order[edges[b] : edges[b + 1]]].tobytes())
            first += len(block)
