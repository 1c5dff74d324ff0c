"""How much a checkpoint takes, whether it fits, and what to say when the disk refuses it."""

import errno
import json
import shutil
from pathlib import Path

from llmtrain.checkpoint.state import State, n_bytes, split_ties
from llmtrain.errors import StorageError

# a header and the manifest name every tensor
_BYTES_PER_TENSOR, _BYTES_PER_GROUP = 512, 4096

_WAY_OUT = {
    errno.ENOSPC: "free some space or lower checkpoint.keep_last",
    errno.EDQUOT: "the quota is used up: free some space or lower checkpoint.keep_last",
    errno.EFBIG: "a limit on the size of files is in force: raise it (ulimit -f) or write elsewhere",
    errno.EIO: "the device failed: see the system's log, and write elsewhere",
    errno.EROFS: "the file system is read-only: write elsewhere, or mount it for writing",
    errno.EACCES: "give this user the right to write there, or write elsewhere",
    errno.ENOENT: "the folder is gone: was it moved or deleted while the run went on?",
}


def estimate_bytes(state: State) -> int:
    """Bytes that a checkpoint of ``state`` takes on the disk, rather too many, those of all ranks together.

    Its tensors may be meta tensors.
    """
    total = len(json.dumps(state.values)) + _BYTES_PER_GROUP
    for named in state.tensors.values():
        stored = split_ties(named)[0].values()
        total += sum(n_bytes(tensor) + _BYTES_PER_TENSOR for tensor in stored) + _BYTES_PER_GROUP
    return total


def preflight(folder: Path, bytes_needed: int) -> None:
    """Refuse to start, with ``StorageError``, where two checkpoints of ``bytes_needed`` do not fit.

    Two, because an old one is deleted only after its successor is on the disk. ``folder`` need not exist yet.
    """
    free = _free(folder)
    if free < 2 * bytes_needed:
        raise StorageError(
            f"{folder}: {human(free)} are free, and checkpoints need {human(2 * bytes_needed)} "
            f"(two of {human(bytes_needed)}): free {human(2 * bytes_needed - free)}, or write elsewhere"
        )


def refused(error: OSError, folder: Path, bytes_needed: int) -> StorageError:
    """The one line that says why ``folder`` could not be written and what to do."""
    try:
        room = f"it needs {human(bytes_needed)}, {human(_free(folder))} are free"
    except OSError:
        room = f"it needs {human(bytes_needed)}"
    way_out = _WAY_OUT.get(error.errno or 0, "write elsewhere")
    return StorageError(
        f"{folder}: the checkpoint was not saved: {error.strerror} ({room}); "
        f"{way_out}; checkpoints saved before it are untouched"
    )


def human(size: int) -> str:
    """Bytes as a person reads them; never rounded to less than there are digits for."""
    number, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def _free(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
