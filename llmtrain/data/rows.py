"""Rows of raw tokens: how shards are cut into them, and in which order a run reads them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from llmtrain.data.order import permutation
from llmtrain.data.shards import Shards
from llmtrain.errors import ConfigError, DataError
from llmtrain.types import BOS, NO_DOC, PAD, Row


@runtime_checkable
class Rows(Protocol):
    @property
    def n_rows(self) -> int: ...

    @property
    def n_tokens(self) -> int:
        """Raw tokens of one epoch: neither padding nor what a row shares with the one before it."""

    @property
    def tokens_per_row(self) -> float:
        """Of them, how many a row adds: ``n_tokens / n_rows``, exact for each where all rows are full."""

    def __getitem__(self, i: int) -> Row:
        """Row i, which is its ``number`` too."""


class PackedRows:
    """Documents end to end, cut every ``raw_len - overlap`` tokens into rows of ``raw_len``.

    Row i begins at token i x (raw_len - overlap). ``isolate`` numbers the documents of a row from 0; without it all are
    document 0. ``tail`` pads the last, partial row (evaluation: each token is scored once) instead of dropping it.
    Raises ``DataError`` where there is no whole row (with ``tail``: no token beyond the overlap).
    """

    def __init__(
        self, shards: Shards, raw_len: int, *, overlap: int = 0, isolate: bool = True, tail: bool = False
    ) -> None:
        assert 0 <= overlap < raw_len
        self._tokens = shards.tokens
        self._raw_len = raw_len
        self._stride = raw_len - overlap
        self._isolate = isolate
        beyond = shards.n_tokens - overlap
        self.n_rows = -(-beyond // self._stride) if tail else beyond // self._stride
        if self.n_rows < 1:
            raise DataError(
                f"{shards.folder}: {shards.n_tokens} tokens are fewer than one row of {raw_len}; "
                "give more text or set a smaller seq_len"
            )
        self.n_tokens = beyond if tail else self.n_rows * self._stride
        self.tokens_per_row = self.n_tokens / self.n_rows

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < self.n_rows:
            raise IndexError(f"row {i} of {self.n_rows}")
        start = i * self._stride
        ids = self._tokens[start : start + self._raw_len].astype(np.int64)
        if self._isolate:
            doc = np.cumsum(ids == BOS)  # BOS is the only separator, and no text becomes it
            doc -= doc[0]
        else:
            doc = np.zeros(len(ids), dtype=np.int64)
        return _padded(ids, doc, self._raw_len, i)


class DocumentRows:
    """One document a row, for objectives that compare documents: BOS, then up to ``raw_len - 1`` of its tokens.

    A longer document gives several rows, one after another; what would be shorter than ``min_len`` tokens, BOS
    included, gives none. ``doc`` is the number of the document in its shards, counted from ``first_document``, so rows
    of one document can be told, and the parts of a mix apart. Raises ``DataError`` where no document is long enough.
    """

    def __init__(self, shards: Shards, raw_len: int, *, min_len: int = 32, first_document: int = 0) -> None:
        min_len = min(min_len, raw_len)  # a document that fills a row is never short
        assert min_len >= 2
        self._tokens = shards.tokens
        self._offsets = shards.offsets
        self._raw_len = raw_len
        self._first_document = first_document
        n_tokens = np.diff(shards.offsets) - 1  # without BOS
        whole, rest = np.divmod(n_tokens, raw_len - 1)
        partial = rest + 1 >= min_len
        n_windows = whole + partial
        self.n_skipped = int(np.count_nonzero(n_windows == 0))  # documents that are too short
        self._ends = np.cumsum(n_windows)
        self.n_rows = int(self._ends[-1])
        if self.n_rows < 1:
            raise DataError(
                f"{shards.folder}: none of {len(n_tokens)} documents has the {min_len} tokens that a row of one "
                f"document needs (the longest has {int(n_tokens.max()) + 1}); give longer documents"
            )
        self.n_tokens = int(whole.sum()) * raw_len + int((rest + 1)[partial].sum())
        self.tokens_per_row = self.n_tokens / self.n_rows

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < self.n_rows:
            raise IndexError(f"row {i} of {self.n_rows}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        window = i - int(self._ends[number - 1]) if number else i
        width = self._raw_len - 1
        start = int(self._offsets[number]) + 1 + window * width
        end = min(start + width, int(self._offsets[number + 1]))
        ids = np.empty(1 + end - start, dtype=np.int64)
        ids[0] = BOS
        ids[1:] = self._tokens[start:end]
        doc = np.full(len(ids), self._first_document + number, dtype=np.int64)
        return _padded(ids, doc, self._raw_len, i)


def _padded(ids: np.ndarray, doc: np.ndarray, raw_len: int, number: int) -> Row:
    if short := raw_len - len(ids):
        ids = np.pad(ids, (0, short), constant_values=PAD)
        doc = np.pad(doc, (0, short), constant_values=NO_DOC)
    return Row(ids, doc, number)


class Address(NamedTuple):
    """Where a row of a run comes from."""

    part: int
    epoch: int  # how often the part has been read before
    row: int  # within the part


class Stream:
    """The order of training: row k of a run as a pure function of k and the seed, over one part or a weighted mix.

    A mix is laid out in blocks of 1,024 rows, each of which holds every part in exact proportion (largest remainder),
    in an order of its own. Each part is read by epochs, every epoch in an order of its own. ``names`` tell the parts'
    orders apart, so that a part keeps its order when another joins the mix.
    """

    _BLOCK = 1024

    def __init__(
        self, parts: Sequence[Rows], weights: Sequence[float], seed: int, *, names: Sequence[str] = ()
    ) -> None:
        assert parts and len(parts) == len(weights)
        self.names = tuple(names) or tuple(str(part) for part in range(len(parts)))
        assert len(self.names) == len(set(self.names)) == len(parts)
        self._n_rows = tuple(part.n_rows for part in parts)
        self._seed = seed
        self._block = self._BLOCK if len(parts) > 1 else 1
        self._counts = apportion(weights, self._block)
        self._starts = (0, *accumulate(self._counts))
        for name, count in zip(self.names, self._counts, strict=True):
            if count == 0:
                raise ConfigError(
                    f"the weight of '{name}' is less than 1/{self._block} of the mix; raise it or leave the source out"
                )

    def locate(self, k: int) -> Address:
        """The address of row ``k``, counted from the start of the run over all ranks."""
        part, index = self._place(k)
        epoch, index = divmod(index, self._n_rows[part])
        order = permutation(self._n_rows[part], self._seed, f"order of {self.names[part]}", epoch)
        return Address(part, epoch, order(index))

    def consumed(self, rows: int) -> tuple[int, ...]:
        """How many of the first ``rows`` rows of the run come from each part."""
        whole = rows - rows % self._block
        counts = [whole // self._block * count for count in self._counts]
        for k in range(whole, rows):
            counts[self._place(k)[0]] += 1
        return tuple(counts)

    def _place(self, k: int) -> tuple[int, int]:
        """The part that row ``k`` comes from, and its index in the part's own order over all epochs."""
        block, slot = divmod(k, self._block)
        if self._block > 1:
            slot = permutation(self._block, self._seed, "mix", block)(slot)
        part = next(p for p, end in enumerate(self._starts[1:]) if slot < end)
        return part, block * self._counts[part] + slot - self._starts[part]


def apportion(weights: Sequence[float], n: int) -> tuple[int, ...]:
    """``n`` seats in proportion to ``weights``, by largest remainder (the first of equals wins)."""
    total = sum(weights)
    if not (total > 0 and min(weights) >= 0):
        raise ConfigError(f"weights {list(weights)} must not be negative, and must not all be 0")
    exact = [weight / total * n for weight in weights]
    seats = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: seats[i] - exact[i])
    for i in by_remainder[: n - sum(seats)]:
        seats[i] += 1
    return tuple(seats)
