"""A corpus on the way: documents as one run of UTF-8 on disk beside an index of fixed-size records."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmtrain.data.corpus import Corpus
from llmtrain.data.documents import cut
from llmtrain.data.sources.base import Document, Tally
from llmtrain.errors import DataError

INDEX = np.dtype(
    [
        ("start", "<u8"),  # of the bytes in the text
        ("bytes", "<u8"),
        ("high", "<u8"),  # the two halves of the text's xxh3-128
        ("low", "<u8"),
        ("document", "<u8"),  # ordinal in the source, dropped ones not counted
        ("side", "u1"),
    ]
)
BY_HASH, TRAIN, VALIDATION = range(3)  # side: not decided yet, or what was
_SIDES = {None: BY_HASH, False: TRAIN, True: VALIDATION}

_BUFFER = 1 << 22


class Spool:
    """What ``spool_documents`` left: the index is a memory map, and a text is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.index = open_index(folder / "index")
        self._text = (folder / "text").open("rb")

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()

    def text(self, record: np.void) -> bytes:
        self._text.seek(int(record["start"]))
        return self._text.read(int(record["bytes"]))


def read(corpus: Corpus, tally: Tally) -> Iterator[Document]:
    """The documents of a corpus' source, up to its ``max_bytes``, where the last one is cut."""
    n_bytes = 0
    for document in corpus.source.documents(tally):
        raw = document.text.encode()
        if corpus.max_bytes is not None and n_bytes + len(raw) > corpus.max_bytes:
            _, end = next(cut(raw, max(4, corpus.max_bytes - n_bytes)))
            raw = raw[:end]
            document = document._replace(text=raw.decode())
        yield document
        n_bytes += len(raw)
        if corpus.max_bytes is not None and n_bytes + 4 > corpus.max_bytes:
            return


def spool_documents(
    corpus: Corpus,
    folder: Path,
    progress: Callable[[int, int | None], None],
    *,
    keep: Callable[[Document], bool] = lambda document: True,
) -> dict[str, Any]:
    """Write the documents of a corpus that are to ``keep`` as ``text`` and ``index`` into ``folder``.

    ``progress`` gets the bytes done and in all (None: not known). Returns counts for the report.
    Raises DataError where nothing is left of the source.
    """
    tally, n_bytes, n_documents = Tally(), 0, 0
    with (folder / "text").open("wb", _BUFFER) as text, IndexWriter(folder / "index") as index:
        for document in filter(keep, read(corpus, tally)):
            raw, side = document.text.encode(), _SIDES[corpus.source.held_out(document)]
            text.write(raw)
            index.add(n_bytes, len(raw), n_documents, side, *hash_halves(raw))
            n_bytes += len(raw)
            n_documents += 1
            progress(n_bytes, corpus.max_bytes)
    if n_documents == 0:
        reason = tally.summary() or "the source gives no document"
        raise DataError(f"the corpus is empty: {reason}; correct data.source")
    return {"documents": n_documents, "bytes": n_bytes, **tally.report()}


def hash_halves(text: bytes) -> tuple[int, int]:
    """xxh3-128 as two words of 64 bits, the leading one first."""
    return divmod(xxhash.xxh3_128_intdigest(text), 1 << 64)


class IndexWriter:
    """Appends records to an index file, some thousand at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", _BUFFER)
        self._records: list[tuple[int, int, int, int, int, int]] = []

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._write()

    def add(self, start: int, n_bytes: int, document: int, side: int, high: int = 0, low: int = 0) -> None:
        self._records.append((start, n_bytes, high, low, document, side))
        if len(self._records) == 4096:
            self._write()

    def _write(self) -> None:
        self._file.write(np.array(self._records, INDEX).tobytes())
        self._records.clear()


def open_index(path: Path) -> np.ndarray:
    """The records of an index file, memory-mapped (an empty file cannot be)."""
    if path.stat().st_size == 0:
        return np.zeros(0, INDEX)
    return np.memmap(path, INDEX, "r")


def blocks(index: np.ndarray, size: int = 1 << 16) -> Iterator[np.ndarray]:
    """Consecutive parts of ``index``, each copied into memory: a scan that stays within bounds."""
    for first in range(0, len(index), size):
        yield np.array(index[first : first + size])
