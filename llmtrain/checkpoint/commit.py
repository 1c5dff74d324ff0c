"""Writing a checkpoint so that it is there whole or not at all, by one process or by many."""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmtrain import faults
from llmtrain.checkpoint import folders
from llmtrain.checkpoint.disk import estimate_bytes, refused
from llmtrain.checkpoint.files import Damaged, NewFile, StoredFile, sync_folder
from llmtrain.checkpoint.manifest import (
    FORMAT,
    NAME,
    VERSION,
    Contents,
    Manifest,
    Part,
    decode,
    encode,
    seal,
)
from llmtrain.checkpoint.state import PER_RANK, Shard, State, Stored, memory, split_ties
from llmtrain.checkpoint.tensors import write_tensors
from llmtrain.errors import StorageError


def save(
    folder: Path,
    step: int,
    state: State,
    *,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] | None = None,
    per_rank: Collection[str] = PER_RANK,
    holds: str | None = None,
    on_write: Callable[[str], None] = lambda point: None,
) -> Path:
    """Commit ``state`` as checkpoint ``step`` of the run in ``folder``, and return the checkpoint's folder.

    All is written, hashed and synced in ``step-N.tmp``, the manifest last; then one rename makes it a
    checkpoint. One that is there for this step already stays, if it is whole. Of many ranks on one file
    system, all must call it; each writes its groups in ``per_rank`` and its shards, and rank 0 alone all other
    tensors and ``state.values``. ``barrier`` waits for all ranks; every rank passes it three times whatever fails, so
    that none waits for one that gave up.

    ``holds`` is a file that ``folder`` must hold, where it would not be made anew after it was deleted or its disk
    unmounted. ``on_write`` is told each point at which a crash would leave something else on the disk.

    Raises ``StorageError`` when the disk refuses; what was written is then removed, and nothing else is
    touched.
    """
    if world > 1 and barrier is None:
        raise ValueError(f"{world} ranks need a barrier")
    for group in state.tensors:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", group):
            raise ValueError(f"group {group!r} names a file: use small letters, digits and _")
    text = json.dumps(state.values, allow_nan=False)
    if json.loads(text) != state.values:
        raise ValueError(
            "state.values would not come back as they are: JSON has no tuples, and strings as keys"
        )
    mine = {
        group: {name: stored for name, stored in named.items() if _writes(rank, stored, group in per_rank)}
        for group, named in state.tensors.items()
    }
    attempt = _Attempt(
        tensors=mine,
        own_files=frozenset(
            group for group, named in state.tensors.items() if _own(named, group in per_rank)
        ),
        values=text.encode(),
        per_rank=frozenset(per_rank),
        final=folders.of_step(folder, step),
        step=step,
        rank=rank,
        world=world,
        holds=holds,
        on_write=on_write,
    )
    failure: Exception | None = None
    for stage in (attempt.begin, attempt.write, attempt.commit):
        if failure is None:
            try:
                stage()
            except Exception as error:
                failure = error
        # not before the last stage: until then other ranks may be writing
        if failure is not None and stage == attempt.commit:
            attempt.undo()
        if barrier is not None:
            barrier()
    if isinstance(failure, OSError):
        raise refused(failure, attempt.final, estimate_bytes(state)) from failure
    if failure is not None:
        raise failure
    if not attempt.final.is_dir():
        why = "another rank failed: see its message" if world > 1 else "the folder is gone"
        raise StorageError(f"{attempt.final}: the checkpoint was not saved, since {why}")
    return attempt.final


@dataclass(frozen=True)
class _Attempt:
    """The three stages of ``save``; between two of them every rank waits for all others."""

    tensors: dict[str, dict[str, Stored]]  # what this rank writes
    own_files: frozenset[str]  # groups of which each rank writes a file
    values: bytes  # of state.json
    per_rank: frozenset[str]
    final: Path
    step: int
    rank: int
    world: int
    holds: str | None
    on_write: Callable[[str], None]

    @property
    def tmp(self) -> Path:
        return folders.unfinished(self.final)

    def begin(self) -> None:
        if self.rank != 0:
            return
        if self.holds is not None:
            (self.final.parents[1] / self.holds).stat()  # FileNotFoundError: it is gone
        self.undo()
        if self.final.exists():
            try:
                folders.verify(self.final)
                return
            except Damaged as damage:
                folders.set_aside(self.final, damage)
        self.tmp.mkdir(parents=True)
        self.on_write("folder made")

    def write(self) -> None:
        # rank 0 made no folder where the checkpoint is there already
        if not self.tmp.is_dir():
            return
        faults.at("save")
        files: dict[str, StoredFile] = {}
        groups: dict[str, list[Part]] = {}
        for group, named in self.tensors.items():
            if not named and self.rank != 0:
                continue
            several = self.world > 1 and group in self.own_files
            suffix = f"-{self.rank:05d}-of-{self.world:05d}" if several else ""
            name = f"{group}{suffix}.safetensors"
            own, ties = split_ties(named)
            with self._new(name) as file:
                stored = write_tensors(file, own)
            files[name] = file.stored
            rank = self.rank if group in self.per_rank else None
            groups[group] = [Part(file=name, rank=rank, tensors=stored, ties=ties)]
        if self.rank == 0:
            with self._new("state.json") as file:
                file.write(self.values)
            files["state.json"] = file.stored
        with self._new(_contents_of(self.rank)) as file:
            file.write(encode(Contents(files=files, groups=groups)))

    def commit(self) -> None:
        if self.rank != 0 or not self.tmp.is_dir():
            return
        files: dict[str, StoredFile] = {}
        groups: dict[str, list[Part]] = {}
        for rank in range(self.world):
            part = self.tmp / _contents_of(rank)
            if not part.exists():
                raise StorageError(
                    f"{self.final}: the checkpoint was not saved, since rank {rank} failed: see its message"
                )
            contents = decode(Contents, part.read_bytes())
            files |= contents.files
            for group, parts in contents.groups.items():
                groups.setdefault(group, []).extend(parts)
            part.unlink()
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            step=self.step,
            world=self.world,
            contents=Contents(files=files, groups=groups),
        )
        with self._new(NAME) as file:
            file.write(seal(manifest))
        sync_folder(self.tmp)
        self.on_write("all synced")
        os.rename(self.tmp, self.final)
        self.on_write("renamed")
        sync_folder(self.final.parent)
        sync_folder(self.final.parent.parent)
        self.on_write("rename synced")

    def undo(self) -> None:
        # a disk that refuses writes may refuse this too: what stays has a name that no checkpoint has
        if self.rank == 0:
            with suppress(OSError):
                shutil.rmtree(self.tmp)

    def _new(self, name: str) -> NewFile:
        return NewFile(self.tmp / name, self.on_write)


def _writes(rank: int, stored: Stored, per_rank: bool) -> bool:
    if isinstance(stored, Shard):
        return stored.first and memory(stored).numel() > 0
    return per_rank or rank == 0


def _own(named: Mapping[str, Stored], per_rank: bool) -> bool:
    return per_rank or any(isinstance(stored, Shard) for stored in named.values())


def _contents_of(rank: int) -> str:
    return f"contents-{rank:05d}.json"
