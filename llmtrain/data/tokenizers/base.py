"""What every tokenizer is: a config that builds it into a folder, and an object that turns text into ids and back.

Processes that only tokenize load this and no torch: ``llmtrain.types`` is imported where a vocabulary is made.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from llmtrain.config import config
from llmtrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    import llmtrain.types

DESCRIPTOR = "llmtrain_tokenizer.json"
_CONTENT = "tokenizer.model"
_FORMAT = "llmtrain tokenizer 1"
_KINDS = {
    "sentencepiece": ("llmtrain.data.tokenizers.sentencepiece", "SentencePieceTokenizer"),
    "huggingface": ("llmtrain.data.tokenizers.huggingface", "HuggingFaceTokenizer"),
    "bytes": ("llmtrain.data.tokenizers.byte", "ByteTokenizer"),
}


@config
class TokenizerConfig(ABC):
    n_sentinels: int = 256  # ids for the spans that denoising removes; 0 where no objective needs them

    def __post_init__(self) -> None:
        if self.n_sentinels < 0:
            raise ConfigError(f"tokenizer.n_sentinels={self.n_sentinels} must not be negative; 0 has none")

    @property
    def n_reserved(self) -> int:
        """Ids at the start of the vocabulary of which no text is made."""
        from llmtrain.types import N_FIXED

        return N_FIXED + self.n_sentinels

    def identity(self) -> dict[str, Any]:
        """What decides the tokenizer besides the text it trains on, as JSON: its part of a cache's key.

        A file counts by its content, not by where it lies.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"tokenizer": type(self).__name__, **fields}

    @abstractmethod
    def build(self, texts: Callable[[], Iterator[str]], folder: Path) -> Tokenizer:
        """Train on documents, or take an existing file, and write the tokenizer into ``folder``, which is empty.

        Raises ``DataError`` where the text or the file cannot make this tokenizer.
        """


class Tokenizer(ABC):
    """Text to ids and back; ids below ``n_reserved`` are never made of text, whatever the text spells.

    ``hash`` covers everything that changes ids.
    """

    def __init__(self, n_reserved: int, content_hash: str) -> None:
        self.n_reserved = n_reserved
        self.hash = content_hash

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """All ids, the reserved ones included."""

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, shifted past the reserved ones."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of ids that are not reserved."""

    @abstractmethod
    def surfaces(self) -> list[bytes]:
        """The raw bytes that each id from ``n_reserved`` on stands for; empty where no text becomes it."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, without BOS, on one core. Raises ``DataError`` for a lone surrogate."""
        for text in texts:
            utf8(text)
        return self._encode(texts)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int] | np.ndarray, *, show_reserved: bool = False) -> str:
        """Reserved ids are dropped, or shown by names such as ``<bos>`` and ``<extra_0>``.

        Ids whose bytes are no whole characters give U+FFFD. Raises ``DataError`` for an id outside the vocabulary.
        """
        listed = [int(i) for i in ids]
        if listed and not 0 <= min(listed) <= max(listed) < self.vocab_size:
            raise DataError(
                f"ids from {min(listed)} to {max(listed)} do not fit this tokenizer's vocabulary of {self.vocab_size}; "
                "decode with the tokenizer that made them"
            )
        if not show_reserved:
            return self._decode([i for i in listed if i >= self.n_reserved])
        names = reserved_names(self.n_reserved)
        runs = itertools.groupby(listed, key=lambda i: i < self.n_reserved)
        return "".join(
            "".join(names[i] for i in run) if reserved else self._decode(list(run)) for reserved, run in runs
        )

    def vocab(self) -> llmtrain.types.Vocab:
        """What objectives and scores may know of this tokenizer."""
        from llmtrain.data.tokenizers.vocab import tabulate

        return tabulate(self.n_reserved, self.surfaces())


def reserved_names(n_reserved: int) -> list[str]:
    """How the reserved ids are shown, in their order."""
    from llmtrain.types import BOS, FIM, MASK, MODES, N_FIXED, PAD, UNK

    names = [f"<spare_{i}>" for i in range(N_FIXED)]
    names[PAD], names[BOS], names[MASK], names[UNK] = "<pad>", "<bos>", "<mask>", "<unk>"
    names[MODES.start : MODES.stop] = ["<mode_r>", "<mode_s>", "<mode_x>", "<mode_spare>"]
    names[FIM.start : FIM.stop] = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_spare>"]
    return names + [f"<extra_{i}>" for i in range(n_reserved - N_FIXED)]


def utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} of a text is the lone surrogate U+{ord(text[error.start]):04X}, which is no "
            "Unicode; replace such characters where the document is read"
        ) from None


def read_model_file(file: str) -> bytes:
    """The tokenizer file that a config names."""
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer.file={file} cannot be read: {error.strerror}; give the path of a file"
        ) from None


def save_tokenizer(
    folder: Path, kind: str, *, n_reserved: int, content: bytes, options: Mapping[str, bool]
) -> Tokenizer:
    """Write a tokenizer as its native file and a descriptor, and open it."""
    (folder / _CONTENT).write_bytes(content)
    descriptor = {"format": _FORMAT, "kind": kind, "n_reserved": n_reserved, "options": dict(options)}
    text = json.dumps({**descriptor, "hash": _hash(descriptor, content)}, indent=1)
    (folder / DESCRIPTOR).write_text(text + "\n")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open what ``build`` wrote. Raises ``DataError`` where it is missing, of another format, or altered."""
    path = folder / DESCRIPTOR
    try:
        descriptor = json.loads(path.read_text())
        content = (folder / _CONTENT).read_bytes()
    except OSError as error:
        raise DataError(
            f"{error.filename}: {error.strerror}; not a whole tokenizer folder: delete {folder} and prepare again"
        ) from None
    except ValueError:
        raise DataError(f"{path} is not JSON; delete {folder} and prepare again") from None
    if (
        not isinstance(descriptor, dict)
        or descriptor.get("format") != _FORMAT
        or descriptor.get("kind") not in _KINDS
    ):
        raise DataError(
            f"{path} does not describe a tokenizer ('{_FORMAT}'); delete {folder} and prepare again"
        )
    content_hash = descriptor.pop("hash", None)
    if content_hash != _hash(descriptor, content):
        raise DataError(
            f"{folder}: the tokenizer is not what its hash says; delete the folder and prepare again"
        )
    module, name = _KINDS[descriptor["kind"]]
    return getattr(import_module(module), name)(
        content, n_reserved=descriptor["n_reserved"], content_hash=content_hash, **descriptor["options"]
    )


def _hash(descriptor: Mapping[str, Any], content: bytes) -> str:
    digest = xxhash.xxh3_128(json.dumps(descriptor, sort_keys=True).encode())
    digest.update(content)
    return digest.hexdigest()
