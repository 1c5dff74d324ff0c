"""Writing tokenized documents to disk: streamed, and committed in one step.

A folder holds ``tokens.bin`` (BOS, document, BOS, document, ..., BOS), ``offsets.bin`` (uint64: the position of each
document's BOS, then that of the last BOS), ``bytes.bin`` (uint64: raw bytes of each document), ``vocab.npz`` and
``manifest.json``. The last BOS lets the end of the last document be predicted as all others are.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import xxhash

from llmtrain.data.stages import flush
from llmtrain.errors import DataError, StorageError

if TYPE_CHECKING:
    import llmtrain.types

TOKENS, OFFSETS, DOC_BYTES, VOCAB = "tokens.bin", "offsets.bin", "bytes.bin", "vocab.npz"
FILES = (TOKENS, OFFSETS, DOC_BYTES, VOCAB)
MANIFEST = "manifest.json"
FORMAT = "llmtrain shards 1"
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class _File:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._digest = xxhash.xxh3_128()
        self.stream: BinaryIO = path.open("wb", buffering=1 << 20)

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self.n_bytes += len(data)
        with _disk(self.path, self.n_bytes):
            self.stream.write(data)

    def commit(self) -> dict[str, int | str]:
        with _disk(self.path, self.n_bytes):
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
        return {"bytes": self.n_bytes, "xxh3": self._digest.hexdigest()}


class ShardWriter:
    """Writes documents one by one into ``folder``, which appears only when all are written; memory does not grow.

    ``meta`` goes into the manifest; readers compare its ``tokenizer_hash`` and ``source_fingerprint``. Leaving the
    ``with`` block by an error leaves nothing. Raises ``StorageError`` where the disk fills up or the folder
    exists, and ``DataError`` where no document was written.
    """

    def __init__(self, folder: Path, vocab: llmtrain.types.Vocab, meta: Mapping[str, Any]) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".tmp")
        self._vocab = vocab
        self._meta = dict(meta)
        self._dtype = np.dtype(np.uint16 if vocab.size <= 1 << 16 else np.uint32)
        self._n_tokens = self._n_documents = self._n_bytes = 0

    def __enter__(self) -> ShardWriter:
        if self._folder.exists():
            raise StorageError(f"{self._folder} exists already; delete it to prepare it again")
        shutil.rmtree(self._partial, ignore_errors=True)  # what a killed process left
        with _disk(self._partial, 0):
            self._partial.mkdir(parents=True)
        self._tokens, self._offsets, self._doc_bytes = (_File(self._partial / name) for name in FILES[:3])
        return self

    def add(self, ids: np.ndarray, n_bytes: int) -> None:
        """Append one document of ``n_bytes`` raw bytes; the writer puts BOS before it."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._vocab.size):
            raise DataError(
                f"{self._folder}: ids of a document do not fit the vocabulary of {self._vocab.size}"
            )
        self._bos()
        self._tokens.write(ids.astype(self._dtype).data.cast("B") if len(ids) else b"")
        self._doc_bytes.write(n_bytes.to_bytes(8, "little"))
        self._n_tokens += len(ids)
        self._n_documents += 1
        self._n_bytes += n_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for file in (self._tokens, self._offsets, self._doc_bytes):
                with suppress(
                    OSError
                ):  # on a full disk closing fails too, after the error that is already on its way
                    file.stream.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _bos(self) -> None:
        from llmtrain.types import BOS

        self._offsets.write(self._n_tokens.to_bytes(8, "little"))
        self._tokens.write(BOS.to_bytes(self._dtype.itemsize, "little"))
        self._n_tokens += 1

    def _commit(self) -> None:
        from llmtrain.data.tokenizers.vocab import save_vocab

        if not self._n_documents:
            raise DataError(
                f"{self._folder}: no document to write; the source is empty, or all of it was dropped"
            )
        self._bos()
        vocab_file = self._partial / VOCAB
        with _disk(vocab_file, self._vocab.size * 6):
            save_vocab(vocab_file, self._vocab)
            flush(vocab_file)
        files = {file.path.name: file.commit() for file in (self._tokens, self._offsets, self._doc_bytes)}
        files[VOCAB] = {"bytes": vocab_file.stat().st_size, "xxh3": checksum(vocab_file)}
        manifest = {
            "format": FORMAT,
            "dtype": self._dtype.name,
            "n_tokens": self._n_tokens,
            "n_documents": self._n_documents,
            "n_bytes": self._n_bytes,
            "vocab_size": self._vocab.size,
            "n_reserved": self._vocab.n_reserved,
            "files": files,
            "meta": self._meta,
        }
        path = self._partial / MANIFEST
        with _disk(path, 4096):
            path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            for written in (path, self._partial):
                flush(written)
            self._partial.rename(self._folder)
            flush(self._folder.parent)


def checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _disk(path: Path, needed: int) -> Iterator[None]:
    """Turn a full disk, quota or file-size limit into one line; ``needed``: bytes that the file takes so far."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise StorageError(f"{path} cannot be written: {error.strerror}; write elsewhere") from error
        free = shutil.disk_usage(path.parent).free
        raise StorageError(
            f"{path}: {error.strerror}: it takes {needed} bytes so far and {free} are free; "
            "free space, or write elsewhere"
        ) from error
