"""Which checkpoint to continue from, and which to keep: the newest valid one wins, and no pointer to it is trusted."""

import logging
from collections.abc import Callable
from pathlib import Path

from llmtrain.checkpoint import folders
from llmtrain.checkpoint.files import Damaged
from llmtrain.errors import ConfigError, StorageError

log = logging.getLogger(__name__)


def find(folder: Path, *, step: int | None = None) -> Path | None:
    """The newest valid checkpoint of the run in ``folder``, or that of ``step``; None where there is none to be found.

    For the one process that holds the run's lock: what a crash left is removed, and a damaged checkpoint is
    renamed to ``step-N.corrupt``, each with a line in the log. ``newest`` only looks. Raises
    ``StorageError`` where ``step`` is asked for and missing or damaged; nothing is changed then.
    """
    if step is not None:
        return _of_step(folder, step)
    for leftover in folders.leftovers(folder):
        log.warning("%s is of a save or a deletion that did not end: removed", leftover)
        folders.remove(leftover)
    return _newest(folder, folders.set_aside)


def newest(folder: Path) -> Path | None:
    """The newest valid checkpoint of the run in ``folder``, which may be running: nothing is changed."""
    return _newest(folder, lambda path, damage: log.warning("%s is damaged (%s): passed over", path, damage))


def prune(
    folder: Path,
    *,
    keep_last: int,
    keep_every: int | None = None,
) -> None:
    """Delete all checkpoints but the newest ``keep_last`` and those of steps that ``keep_every`` divides.

    Nothing is deleted unless the newest is valid, which is seen by reading it.
    """
    if keep_last < 1 or (keep_every is not None and keep_every < 1):
        raise ConfigError(
            f"checkpoint.keep_last={keep_last} and checkpoint.keep_every={keep_every}: must be at least 1"
        )
    found = folders.committed(folder)
    doomed = [step for step in list(found)[:-keep_last] if keep_every is None or step % keep_every]
    if not doomed:
        return
    last = found[max(found)]
    try:
        folders.verify(last)
    except Damaged as damage:
        log.warning("%s is damaged (%s): older checkpoints are kept", last, damage)
        return
    for step in doomed:
        folders.delete(found[step])


def _newest(folder: Path, reject: Callable[[Path, Damaged], None]) -> Path | None:
    found = folders.committed(folder)
    for path in reversed(found.values()):
        try:
            folders.verify(path)
            return path
        except Damaged as damage:
            reject(path, damage)
    if found:
        log.error("%s: none of its %d checkpoints is valid", folder, len(found))
    return None


def _of_step(folder: Path, step: int) -> Path:
    found = folders.committed(folder)
    there = f"there are {', '.join(map(str, found))}" if found else "there is none"
    if step not in found:
        raise StorageError(f"{folder} has no checkpoint of step {step}: {there}")
    try:
        folders.verify(found[step])
    except Damaged as damage:
        raise StorageError(f"{found[step]} is damaged ({damage}); of checkpoints, {there}") from None
    return found[step]
