"""Reading a checkpoint: nothing is executed, and nothing allocated before all is known to be what is expected."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from llmtrain.checkpoint.files import Damaged, StoredReader
from llmtrain.checkpoint.manifest import DTYPES, Manifest, Part, read_manifest
from llmtrain.checkpoint.state import Expect, Spec, State
from llmtrain.checkpoint.tensors import read_tensors
from llmtrain.errors import ConfigError


def load(path: Path, *, expect: Expect | None = None, rank: int = 0, world: int = 1) -> State:
    """The state in the checkpoint ``path``, on the CPU, as ``rank`` of ``world`` saved it.

    ``expect`` (see ``specs``) names the groups to read, by default all; in each, names, shapes and types
    must be equal, else ``ConfigError`` names the first difference. Names that were tied are one tensor
    again. Groups that each rank has of its own come back only for as many ranks as saved them.

    Raises ``Damaged``, a ``StorageError``, where a file is not what was written.
    """
    try:
        manifest = read_manifest(path)
        parts = _own_parts(manifest, rank, world)
        if expect is not None:
            parts = _compared(path, parts, expect, manifest.world, world)
        tensors = {group: _read(path, part, manifest) for group, part in parts.items()}
        return State(tensors, _read_values(path, manifest))
    except Damaged as damage:
        raise Damaged(f"{path} is damaged: {damage}") from None


def _own_parts(manifest: Manifest, rank: int, world: int) -> dict[str, Part]:
    own = {}
    for group, parts in manifest.contents.groups.items():
        for part in parts:
            if part.rank is None or (part.rank == rank and manifest.world == world):
                own[group] = part
    return own


def _compared(
    path: Path, parts: Mapping[str, Part], expect: Expect, saved_world: int, world: int
) -> dict[str, Part]:
    """The parts of the expected groups, once there is no difference; only the manifest has been read."""
    for group, wanted in expect.items():
        if group not in parts:
            reason = (
                f"{saved_world} ranks saved it and {world} load it"
                if saved_world != world
                else f"it has {', '.join(sorted(parts))}"
            )
            raise ConfigError(f"{path} has no {group} for this rank: {reason}")
        saved = _specs(parts[group])
        for name in [*wanted, *saved]:
            if saved.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{path}: {group} {name} is {_shown(saved.get(name))} in the checkpoint "
                    f"and {_shown(wanted.get(name))} in this run: "
                    "continue with the config it was saved with, or start a new run under another name"
                )
    return {group: parts[group] for group in expect}


def _specs(part: Part) -> dict[str, Spec]:
    stored = part.tensors | {alias: part.tensors[name] for alias, name in part.ties.items()}
    return {name: (tensor.shape, DTYPES[tensor.dtype]) for name, tensor in stored.items()}


def _shown(spec: Spec | None) -> str:
    return "not there" if spec is None else f"{spec[0]} {str(spec[1]).removeprefix('torch.')}"


def _read(path: Path, part: Part, manifest: Manifest) -> dict[str, Tensor]:
    with StoredReader(path / part.file, manifest.contents.files[part.file]) as file:
        tensors = read_tensors(file, part.tensors)
    return tensors | {alias: tensors[name] for alias, name in part.ties.items()}


def _read_values(path: Path, manifest: Manifest) -> dict[str, object]:
    stored = manifest.contents.files.get("state.json")
    if stored is None:
        raise Damaged("its manifest lists no state.json")
    with StoredReader(path / "state.json", stored) as file:
        text = file.read(stored.size)
        file.finish()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"state.json is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Damaged("state.json is no object")
    return values
