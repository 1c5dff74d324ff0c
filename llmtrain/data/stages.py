"""Work that survives a kill: a stage leaves a whole folder or none, one process at a time, and a full disk is told."""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from llmtrain.errors import StorageError

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def stage(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, made by ``make`` in a folder beside it and renamed when whole; not made again where it is there."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            make(partial)
            for path in (*(p for p in partial.rglob("*") if p.is_file()), partial):
                flush(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room; earlier stages stay
            raise
        partial.rename(folder)
        flush(folder.parent)
    return folder


def flush(path: Path) -> None:
    """Wait until ``path``, a file or the entries of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold ``lock`` among the processes that share its file system; a second one waits, and says so.

    The lock is the kernel's (flock): it ends with the processes that hold it, however they end. Those that this one
    starts with ``close_fds=False`` hold it too, so that none still writes when another start goes on.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.warning(
                "another process (pid %s) is preparing this corpus; waiting for it", file.read() or "?"
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def storage_told(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses while ``folder`` is written into a StorageError of one line.

    Sources tell their own files' errors as DataError, so an OSError that comes this far is the disk's.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_why(folder, error)) from error


def _why(folder: Path, error: OSError) -> str:
    if error.errno not in _FULL:
        where = error.filename or folder
        return f"{where}: cannot be written ({error.strerror}); allow it, or set data.cache to another folder"
    written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    free = shutil.disk_usage(folder).free
    return (
        f"{folder}: the disk, a quota or a limit on file sizes is full ({error.strerror}): {written:,} bytes lie "
        f"there, {free:,} are free; make room or set data.cache to another disk, then start again: finished "
        "stages are kept"
    )
