"""The names of checkpoint folders, what they promise, and the ways in which they come and go."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from llmtrain import faults
from llmtrain.checkpoint.files import Damaged, check
from llmtrain.checkpoint.manifest import read_manifest
from llmtrain.errors import StorageError

log = logging.getLogger(__name__)


def of_step(folder: Path, step: int) -> Path:
    """Where the run in ``folder`` keeps checkpoint ``step``."""
    return folder / "checkpoints" / f"step-{step:08d}"


def unfinished(checkpoint: Path) -> Path:
    """Where ``checkpoint`` is while it is written or deleted: a name that is never taken for a checkpoint."""
    return checkpoint.with_name(checkpoint.name + ".tmp")


def committed(folder: Path) -> dict[int, Path]:
    """The checkpoints of the run in ``folder`` by step, oldest first, whole or not."""
    return {int(path.name[5:]): path for path in _matching(folder, r"step-\d{8,}")}


def leftovers(folder: Path) -> list[Path]:
    """What a crash inside a save or a deletion left."""
    return _matching(folder, r"step-\d{8,}\.tmp")


def verify(checkpoint: Path) -> None:
    """Read all of ``checkpoint``; raise ``Damaged`` unless every file is as it was written."""
    for name, stored in read_manifest(checkpoint).contents.files.items():
        check(checkpoint / name, stored)


def set_aside(checkpoint: Path, damage: Damaged) -> None:
    """Rename a damaged ``checkpoint`` to ``step-N.corrupt``, where it is never loaded, and say so."""
    n = 0
    while (aside := checkpoint.with_name(f"{checkpoint.name}.corrupt{f'-{n}' if n else ''}")).exists():
        n += 1
    _do("set aside", os.rename, checkpoint, aside)
    log.warning("%s is damaged (%s): set aside as %s", checkpoint, damage, aside.name)


def delete(checkpoint: Path) -> None:
    """Delete ``checkpoint`` so that at no moment a part of it looks like a checkpoint."""
    faults.at("delete")
    _do("deleted", os.rename, checkpoint, unfinished(checkpoint))
    faults.at("delete")
    remove(unfinished(checkpoint))


def remove(leftover: Path) -> None:
    _do("deleted", shutil.rmtree, leftover)


def _do(what: str, act: Callable[..., object], path: Path, *more: Path) -> None:
    try:
        act(path, *more)
    except OSError as error:
        raise StorageError(f"{path} could not be {what}: {error.strerror}") from error


def _matching(folder: Path, pattern: str) -> list[Path]:
    within = folder / "checkpoints"
    if not within.is_dir():
        return []
    # links are not ours: a checkpoint is a folder
    found = [path for path in within.iterdir() if re.fullmatch(pattern, path.name) and not path.is_symlink()]
    return sorted((path for path in found if path.is_dir()), key=lambda path: (len(path.name), path.name))
