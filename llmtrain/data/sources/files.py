"""Bytes out of files, plain or compressed, in memory that does not grow with the file."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from llmtrain.errors import DataError

COMPRESSED = (".gz", ".xz", ".zst")
_BLOCK = 1 << 20


def blocks(path: Path) -> Iterator[bytes]:
    """The content of ``path``, decompressed by its suffix. Raises DataError where it is cut off or damaged."""
    try:
        if path.suffix.lower() in COMPRESSED and path.stat().st_size == 0:
            raise EOFError  # gzip would take it for an empty archive
        with path.open("rb") as stream:
            match path.suffix.lower():
                case ".gz":
                    yield from _read(gzip.GzipFile(fileobj=stream))
                case ".xz":
                    yield from _read(lzma.LZMAFile(stream))  # noqa: SIM115
                case ".zst":
                    yield from _zstandard(stream)
                case _:
                    yield from _read(stream)
    except EOFError as error:
        raise DataError(
            f"{path}: the compressed file is cut off before its end; fetch or write it again"
        ) from error
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        kind = path.suffix.lstrip(".")
        raise DataError(f"{path}: not a valid .{kind} file ({error}); fetch or write it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fix the file or its path") from error


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


def _read(stream: io.BufferedIOBase) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _zstandard(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Frame by frame: the library's own stream reader takes a frame that is cut off for the end of the file."""
    frame, inside = zstandard.ZstdDecompressor().decompressobj(), False
    for block in _read(stream):
        rest = block
        while rest:
            yield frame.decompress(rest)
            rest, inside = frame.unused_data, not frame.eof
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
    if inside:
        raise EOFError
