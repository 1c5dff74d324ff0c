"""Reading tokenized documents: checked when they are opened, then memory-mapped."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from llmtrain.data.shard_writer import (
    DOC_BYTES,
    FILES,
    FORMAT,
    MANIFEST,
    OFFSETS,
    TOKENS,
    VOCAB,
    ShardWriter,
    checksum,
)
from llmtrain.errors import DataError

if TYPE_CHECKING:
    import llmtrain.data.tokenizers.base
    import llmtrain.types

__all__ = ["ShardWriter", "Shards"]

_VERIFIED = ".verified.json"  # (size, mtime) of the files when their checksums were last seen to hold
_DTYPES: dict[str, np.dtype] = {"uint16": np.dtype(np.uint16), "uint32": np.dtype(np.uint32)}
_BLOCK = 1 << 22


class Shards:
    """A folder of tokenized documents, open for reading; pickles as its path, so that workers map the same pages."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.n_tokens: int = manifest["n_tokens"]
        self.n_documents: int = manifest["n_documents"]
        self.n_bytes: int = manifest["n_bytes"]  # of raw text
        # plain arrays over the map: slicing a np.memmap itself is several times slower
        self.tokens = _map(folder / TOKENS, _DTYPES[manifest["dtype"]])
        self.offsets = _map(folder / OFFSETS, np.dtype(np.int64))  # [n_documents + 1]; uint64 on disk
        self.doc_bytes = _map(folder / DOC_BYTES, np.dtype(np.int64))  # [n_documents]

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Shards:
        """Open what ``ShardWriter`` committed.

        Raises ``DataError``, naming the file, where anything is missing, truncated or altered. ``verify`` reads all
        tokens once per change of the files, and remembers.
        """
        manifest = _read_manifest(folder)
        for name in FILES:
            path, size = folder / name, manifest["files"][name]["bytes"]
            actual = path.stat().st_size if path.exists() else None
            if actual != size:
                what = "is missing" if actual is None else f"has {actual} bytes, not {size}"
                raise DataError(f"{path} {what}: truncated or altered; {_way_out(folder)}")
        if verify and _stamps(folder) != _remembered(folder):
            _verify(folder, manifest)
        return cls(folder, manifest)

    @classmethod
    def open_for(
        cls, folder: Path, tokenizer: llmtrain.data.tokenizers.base.Tokenizer, *, verify: bool = True
    ) -> Shards:
        """``open``, refused with ``DataError`` where the shards were made by another tokenizer."""
        shards = cls.open(folder, verify=verify)
        made = (shards.manifest["vocab_size"], shards.manifest["n_reserved"], shards.tokenizer_hash)
        if made != (tokenizer.vocab_size, tokenizer.n_reserved, tokenizer.hash):
            raise DataError(
                f"{folder} was tokenized by another tokenizer (vocabulary {made[0]}, hash {made[2]}) than this one "
                f"(vocabulary {tokenizer.vocab_size}, hash {tokenizer.hash}); {_way_out(folder)}"
            )
        return shards

    @property
    def tokenizer_hash(self) -> str | None:
        return self.manifest["meta"].get("tokenizer_hash")

    @cached_property
    def vocab(self) -> llmtrain.types.Vocab:
        from llmtrain.data.tokenizers.vocab import load_vocab

        return load_vocab(self.folder / VOCAB)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the content: equal for equal documents under an equal tokenizer, wherever they lie."""
        content = [self.manifest["files"], self.manifest["dtype"], self.tokenizer_hash]
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    def __reduce__(self) -> tuple[type[Shards], tuple[Path, dict[str, Any]]]:
        return Shards, (self.folder, self.manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): not prepared, or not to the end; {_way_out(folder)}"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); {_way_out(folder)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not of the format '{FORMAT}'; {_way_out(folder)}")
    try:
        width = _DTYPES[manifest["dtype"]].itemsize
        sizes = {name: manifest["files"][name]["bytes"] for name in FILES}
        expected = {
            TOKENS: manifest["n_tokens"] * width,
            OFFSETS: (manifest["n_documents"] + 1) * 8,
            DOC_BYTES: manifest["n_documents"] * 8,
            VOCAB: sizes[VOCAB],
        }
        counts = [manifest[name] for name in ("n_bytes", "vocab_size", "n_reserved")]
        whole = all(isinstance(n, int) for n in counts) and isinstance(manifest["meta"], dict)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {_way_out(folder)}") from None
    if sizes != expected or not whole:
        raise DataError(f"{path}: its counts, dtype and file sizes do not agree; {_way_out(folder)}")
    return manifest


def _verify(folder: Path, manifest: dict[str, Any]) -> None:
    stamps = _stamps(folder)
    for name in FILES:
        if checksum(folder / name) != manifest["files"][name]["xxh3"]:
            raise DataError(
                f"{folder / name} is not what was written: its checksum differs; {_way_out(folder)}"
            )
    tokens = _map(folder / TOKENS, _DTYPES[manifest["dtype"]])
    offsets = _map(folder / OFFSETS, np.dtype(np.int64))
    highest = n_separators = 0
    for i in range(0, len(tokens), _BLOCK):
        block = tokens[i : i + _BLOCK]
        highest = max(highest, int(block.max()))
        n_separators += int(
            np.count_nonzero(block == tokens[0])
        )  # the first is one: BOS, of which no text is made
    if highest >= manifest["vocab_size"]:
        raise DataError(
            f"{folder / TOKENS} has id {highest}, outside its vocabulary of {manifest['vocab_size']}; "
            f"{_way_out(folder)}"
        )
    rising = (np.diff(offsets) > 0).all() and offsets[0] == 0 and offsets[-1] == len(tokens) - 1
    if not (rising and n_separators == len(offsets) and (tokens[offsets] == tokens[0]).all()):
        raise DataError(
            f"{folder / OFFSETS} does not lead to the documents of {TOKENS}: the two are not of one writing; "
            f"{_way_out(folder)}"
        )
    with suppress(OSError):  # a read-only folder: verified anew each time
        partial = folder / f"{_VERIFIED}.{os.getpid()}"
        partial.write_text(json.dumps(stamps))
        partial.replace(folder / _VERIFIED)


def _stamps(folder: Path) -> dict[str, list[int]]:
    stats = {name: (folder / name).stat() for name in (*FILES, MANIFEST)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _remembered(folder: Path) -> object:
    with suppress(OSError, ValueError):  # missing or torn: it only saves time
        return json.loads((folder / _VERIFIED).read_text())
    return None


def _way_out(folder: Path) -> str:
    return f"delete {folder} and prepare it again"


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
