"""One run a folder: a lock that a second process is refused by, and that dies with its holder."""

import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from llmtrain.errors import StorageError

log = logging.getLogger(__name__)

_held: set[int] = set()


def _let_go_in_child() -> None:
    # a lock lives as long as any copy of its descriptor: without this, data workers keep it after a killed trainer
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class RunLock:
    """Held by the process that writes to a run's folder; the first rank alone takes it.

    ``folder/.lock`` names the holder, but what locks is ``flock(2)``: the system frees it when the holder
    ends, however it ends. The file is never deleted, since another process may be about to lock it, and is
    empty after a clean end. ``force`` puts a new file in the place of one that is locked: for a network file system
    that does not free the locks of a machine that is gone.
    """

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        self._path, self._force = folder / ".lock", force
        self._descriptor = -1

    def __enter__(self) -> "RunLock":
        """Raises ``StorageError``, which names the holder, where another process has it."""
        descriptor = self._open()
        if self._force and self._is_held(descriptor):
            os.close(descriptor)
            descriptor = self._open(anew=True)
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a forked child has closed its copy, and has no say over the lock
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def _open(self, *, anew: bool = False) -> int:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                self._path.unlink()
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written: {error.strerror}; write the run elsewhere"
            ) from error

    def _is_held(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _named(_read(descriptor))
            log.warning("%s is in use by %s: taken from it by force=true", self._path.parent, holder)
            return True
        except OSError:
            pass  # there are no locks, as taking it will say
        return False

    def _take(self, descriptor: int) -> None:
        folder = self._path.parent
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{folder} is in use by {_named(_read(descriptor))}: wait for it, stop it, or set another name= "
                "(force=true where it is known to have ended)"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be locked: {error.strerror}; write the run to a file system that has locks"
            ) from error
        before, own = _read(descriptor), _holder()
        if before and any(before.get(key) != own[key] for key in ("host", "boot_id")):
            # its lock was free, but not every network file system shows locks to other hosts
            log.warning("%s was left by %s, in another boot: make sure that it ended", folder, _named(before))
        elif before:
            log.warning("%s was left by %s, which did not end cleanly: taken over", folder, _named(before))
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(own).encode(), 0)
            os.fsync(descriptor)
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written: {error.strerror}; write the run elsewhere"
            ) from error


def in_use(folder: Path) -> bool:
    """Whether a process holds ``folder``, as far as its holder's own words tell: nothing is locked to find out."""
    try:
        with (folder / ".lock").open("rb") as file:
            holder = _read(file.fileno())
    except OSError:
        return False
    own = _holder()
    if not holder or any(holder.get(key) != own[key] for key in ("host", "boot_id")):
        return bool(holder)
    try:
        os.kill(int(str(holder["pid"])), 0)
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, ValueError, KeyError):
        return False
    return True


def _holder() -> dict[str, object]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot_id": boot.read_text().strip() if boot.exists() else "",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _read(descriptor: int) -> dict[str, object]:
    """What the last holder wrote; empty where it ended cleanly, or has not written yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _named(holder: dict[str, object]) -> str:
    if not holder:
        return "another process, which has just started"
    return f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')}"
