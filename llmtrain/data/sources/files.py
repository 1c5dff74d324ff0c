"""Bytes out of files, plain or compressed, in memory that does not grow with the file."""

import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from llmtrain.errors import DataError

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # 31: within the header and the checksum of gzip
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
COMPRESSED = tuple(_DECOMPRESSORS)
_BLOCK = 1 << 20
_COMPRESSED_BLOCK = 1 << 16  # may decompress to a thousand times as much


class BadFile(DataError):
    """A file, or a line of it, that is not what its format says; ``reason`` is what it is counted under."""

    def __init__(self, message: str, reason: str = "damaged file, read up to the damage") -> None:
        super().__init__(message)
        self.reason = reason


def blocks(path: Path) -> Iterator[bytes]:
    """The content of ``path``, decompressed by its suffix.

    Raises BadFile, naming the line, where it is cut off or damaged.
    """
    line = 1
    try:
        with path.open("rb") as stream:
            for block in _decompressed(stream, path.suffix.lower()):
                yield block
                line += block.count(b"\n")
    except EOFError as error:
        raise BadFile(
            f"{path}:{line}: the compressed file is cut off before its end; fetch or write it again"
        ) from error
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        kind = path.suffix.lstrip(".")
        raise BadFile(
            f"{path}:{line}: not a valid .{kind} file ({error}); fetch or write it again"
        ) from error
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror}); fix the file or its path") from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its newline); a final line without a newline counts."""
    number, rest = 0, [b""]
    for block in blocks(path):
        head, *more = block.split(b"\n")
        rest.append(head)
        for line in more:
            number += 1
            yield number, b"".join(rest)
            rest = [line]
    if last := b"".join(rest):
        yield number + 1, last


def pieces(path: Path, limit: int) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, bytes): the whole file where it has at most ``limit`` bytes, else parts cut at lines.

    A part is cut within a line only where the line is longer than ``limit``, and then between characters.
    """
    line, held = 1, b""
    for block in blocks(path):
        held += block
        while len(held) > limit:
            end = held.rfind(b"\n", 0, limit) + 1 or _character_start(held, limit)
            yield line, held[:end]
            line += held.count(b"\n", 0, end)
            held = held[end:]
    yield line, held


def _character_start(text: bytes, end: int) -> int:
    for back in range(4):  # a character of UTF-8 has at most 4 bytes
        if text[end - back] & 0xC0 != 0x80:
            return end - back
    return end


def _decompressed(stream: io.BufferedIOBase, suffix: str) -> Iterator[bytes]:
    """Member by member, as an archive may have several.

    The libraries' own readers lose what comes before a cut, and that of zstandard takes a cut for the end.
    """
    new = _DECOMPRESSORS.get(suffix)
    if new is None:
        yield from _read(stream, _BLOCK)
        return
    member, inside = new(), True  # a file without a single byte is cut off too
    for block in _read(stream, _COMPRESSED_BLOCK):
        rest = block
        while rest := rest if inside else rest.lstrip(b"\0"):  # zeros may pad what comes between members
            yield member.decompress(rest)
            rest, inside = member.unused_data, not member.eof
            if member.eof:
                member = new()
    if inside:
        raise EOFError


def _read(stream: io.BufferedIOBase, size: int) -> Iterator[bytes]:
    while block := stream.read(size):
        yield block
