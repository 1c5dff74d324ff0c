"""``manifest.json``: what a checkpoint holds, and how to tell that it is whole."""

import json
import re
from pathlib import Path
from typing import TypeVar

import torch
import xxhash
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from llmtrain.checkpoint.files import Damaged, StoredFile, open_plain
from llmtrain.config import config
from llmtrain.errors import StorageError
from llmtrain.place import Place, everything

NAME = "manifest.json"
FORMAT, VERSION = "llmtrain-checkpoint", 2
READABLE = frozenset({1, 2})  # the first had neither parts of tensors nor a hash for each
_LARGEST = 2**63 - 1  # torch's largest size of an axis
LONGEST = 256 << 20  # bytes of a manifest: one that is longer was not written by us

DTYPES = {  # as safetensors names them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

T = TypeVar("T")


@config
class StoredTensor:
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    place: Place | None = (
        None  # of a tensor that is stored in parts: where this one lies; none: it is the whole
    )
    hash: str | None = None  # xxh3-128 of its elements; none: that of its file is all there is

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.dtype!r} is no type of tensor")
        if max((*self.shape, *self.lies.whole), default=0) > _LARGEST:
            raise ValueError(f"{self.shape} is no shape of a tensor")
        if self.place is not None and not self.place.holds(self.shape):
            raise ValueError(f"a part of shape {self.shape} cannot lie at {self.place}")

    @property
    def lies(self) -> Place:
        return everything(self.shape) if self.place is None else self.place


@config
class Part:
    """The tensors of one group in one file."""

    file: str
    rank: int | None  # None: of all ranks alike
    tensors: dict[str, StoredTensor]
    ties: dict[str, str]  # a further name of a tensor -> the name that it is stored under


@config
class Contents:
    """What one rank has written."""

    files: dict[str, StoredFile]
    groups: dict[str, list[Part]]

    def __post_init__(self) -> None:
        for name in self.files:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise ValueError(f"{name!r} is no plain file name")
        for part in (part for parts in self.groups.values() for part in parts):
            if part.file not in self.files:
                raise ValueError(f"{part.file!r} is not among the files")
            if not set(part.ties.values()) <= set(part.tensors):
                raise ValueError(f"{part.file!r} ties names to tensors that it does not have")


@config
class Manifest:
    format: str
    version: int
    step: NonNegativeInt
    world: PositiveInt  # ranks that wrote it
    contents: Contents


def encode(value: Contents | Manifest) -> bytes:
    return TypeAdapter(type(value)).dump_json(value, exclude_defaults=True)


def decode(kind: type[T], data: bytes) -> T:
    """Raises ``ValueError`` for what is not a ``kind``."""
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def seal(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``, which hold their own hash: no byte of it can change unseen."""
    body = encode(manifest)
    return _head(body) + body + _TAIL


def read_manifest(folder: Path) -> Manifest:
    """Raises ``Damaged``, or ``StorageError`` where it is whole but of a format that this version cannot read."""
    path = folder / NAME
    with open_plain(path) as file:
        data = file.read(LONGEST)
    body = data[len(_head(b"")) : -len(_TAIL)]
    if data != _head(body) + body + _TAIL:
        raise Damaged(f"{NAME} is not what was written: its hash is not its own")
    try:
        seen = json.loads(body)
        known = seen["format"], seen["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Damaged(f"{NAME} names no format") from None
    if known[0] != FORMAT or known[1] not in READABLE:
        raise StorageError(
            f"{path} is of format {known[0]} {known[1]}, and this llmtrain reads {FORMAT} up to {VERSION}: "
            "use the llmtrain that wrote it"
        )
    try:
        return decode(Manifest, body)
    except ValueError as error:
        raise Damaged(f"{NAME}: {error}") from None


def _head(body: bytes) -> bytes:
    return b'{"hash":"%s","manifest":' % xxhash.xxh3_128_hexdigest(body).encode()


_TAIL = b"}\n"
