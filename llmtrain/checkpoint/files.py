"""Files that are hashed while they are written or read, and are on the disk when they are done."""

import errno
import os
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from types import TracebackType

import xxhash
from pydantic import NonNegativeInt

from llmtrain import heartbeat
from llmtrain.config import config
from llmtrain.errors import StorageError

CHUNK = 16 << 20  # bytes written, read or hashed at a time: memory stays bounded by it

# what a system says of a file that is gone, broken or no file; no permission, for one, is no damage
_BROKEN = frozenset({errno.ENOENT, errno.ELOOP, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENXIO})


class Damaged(StorageError):
    """A checkpoint that is not what was written: it is set aside, and the next older is tried."""


@config
class StoredFile:
    size: NonNegativeInt  # bytes
    hash: str  # xxh3-128, 32 hexadecimal digits


class NewFile:
    """A file that must not exist yet; once its block is left it is on the disk, and ``stored`` describes it."""

    def __init__(self, path: Path, on_write: Callable[[str], None]) -> None:
        self._path, self._on_write = path, on_write
        self._hash, self._size = xxhash.xxh3_128(), 0
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            heartbeat.beat()
            # a disk that is nearly full takes a part, and refuses the rest at the next call
            written = self._file.write(rest[:CHUNK])
            self._hash.update(rest[:written])
            self._size += written
            rest = rest[written:]
            self._on_write(f"{self._path.name}, {self._size} bytes")

    @property
    def stored(self) -> StoredFile:
        return StoredFile(size=self._size, hash=self._hash.hexdigest())

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


class StoredReader:
    """A file of a checkpoint, read from beginning to end and compared with what its manifest says of it.

    One that is read in parts only, by ``seek``, has no ``finish``: its reader compares the parts.

    Raises ``Damaged`` where it is missing, no plain file, of another size, or, at ``finish``, of another
    hash.
    """

    def __init__(self, path: Path, stored: StoredFile) -> None:
        self._path, self.name, self.size = path, path.name, stored.size
        self._expected, self._hash = stored.hash, xxhash.xxh3_128()
        self._file = open_plain(path)
        size = os.fstat(self._file.fileno()).st_size
        if size != stored.size:
            self._file.close()
            raise Damaged(f"{self.name} has {size} bytes and not {stored.size}")

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer``, a flat view of bytes."""
        for start in range(0, len(buffer), CHUNK):
            heartbeat.beat()
            piece = buffer[start : start + CHUNK]
            try:
                count = self._file.readinto(piece)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if count != len(piece):
                raise Damaged(f"{self.name} ends before its {self.size} bytes")
            self._hash.update(piece)

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def finish(self) -> None:
        """Raise ``Damaged`` unless all that was read is what was written."""
        if self._hash.hexdigest() != self._expected:
            raise Damaged(f"{self.name} is not what was written: its hash is not the one in its manifest")

    def __enter__(self) -> "StoredReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def check(path: Path, stored: StoredFile) -> None:
    """Raise ``Damaged`` unless the file has the size and the hash that it was written with."""
    with StoredReader(path, stored) as file:
        buffer = memoryview(bytearray(min(CHUNK, stored.size)))
        for start in range(0, stored.size, CHUNK):
            file.read_into(buffer[: stored.size - start])
        file.finish()


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading: no link, which could lead out of its folder, and no pipe, which would hang."""
    extra = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra))
    except OSError as error:
        raise _unreadable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk: without it a rename may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unreadable(path: Path, error: OSError) -> StorageError:
    if error.errno in _BROKEN:
        return Damaged(f"{path.name} cannot be read: {error.strerror}")
    return StorageError(f"{path} cannot be read: {error.strerror}")
