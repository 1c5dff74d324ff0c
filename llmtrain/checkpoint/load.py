"""Reading a checkpoint: nothing is executed, and nothing allocated before all is known to be what is expected."""

import json
import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from llmtrain.checkpoint.files import Damaged, StoredReader
from llmtrain.checkpoint.manifest import DTYPES, Manifest, Part, read_manifest
from llmtrain.checkpoint.state import Expect, Spec, State, Stored
from llmtrain.checkpoint.tensors import read_tensors
from llmtrain.errors import ConfigError
from llmtrain.place import Place, everything, overlap


def load(
    path: Path,
    *,
    expect: Expect | None = None,
    places: Mapping[str, Mapping[str, Place]] = MappingProxyType({}),
    only: Collection[str] | None = None,
    rank: int = 0,
    world: int = 1,
) -> State:
    """The state in the checkpoint ``path``, on the CPU, as ``rank`` of ``world`` saved it.

    ``expect`` (see ``specs``) names the groups to read, by default all; in each, names, shapes and types
    must be equal, else ``ConfigError`` names the first difference. ``only`` are groups to read where they are there.
    Names that were tied are one tensor again. Groups that each rank has of its own come back only for as many ranks as
    saved them.

    Of tensors in ``places`` (group -> name, see ``state.places``) the part that lies there is read, of all others the
    whole, however many ranks saved them in whatever parts.

    Raises ``Damaged``, a ``StorageError``, where what was read is not what was written.
    """
    try:
        manifest = read_manifest(path)
        groups = _own_groups(manifest, rank, world)
        if only is not None:
            groups = {name: group for name, group in groups.items() if name in only}
        if expect is not None:
            groups = _compared(path, groups, expect, manifest.world, world)
        tensors: dict[str, dict[str, Stored]] = {
            name: _read(path, group, places.get(name, {}), manifest) for name, group in groups.items()
        }
        return State(tensors, _read_values(path, manifest))
    except Damaged as damage:
        raise Damaged(f"{path} is damaged: {damage}") from None


class _Group(NamedTuple):
    """What all the files of a group hold together."""

    parts: list[Part]
    specs: dict[str, Spec]  # of whole tensors, further names included
    ties: dict[str, str]


def _own_groups(manifest: Manifest, rank: int, world: int) -> dict[str, _Group]:
    own = {}
    for name, parts in manifest.contents.groups.items():
        mine = [
            part for part in parts if part.rank is None or (part.rank == rank and manifest.world == world)
        ]
        if mine:
            own[name] = _joined(mine)
    return own


def _joined(parts: list[Part]) -> _Group:
    whole: dict[str, Spec] = {}
    ties: dict[str, str] = {}
    for part in parts:
        for name, stored in part.tensors.items():
            spec = stored.lies.whole, DTYPES[stored.dtype]
            if whole.setdefault(name, spec) != spec:
                raise Damaged(f"its files do not agree on what {name} is")
        ties |= part.ties
    return _Group(parts, whole | {alias: whole[name] for alias, name in ties.items()}, ties)


def _compared(
    path: Path, groups: Mapping[str, _Group], expect: Expect, saved_world: int, world: int
) -> dict[str, _Group]:
    """The expected groups, once there is no difference; only the manifest has been read."""
    for group, wanted in expect.items():
        if group not in groups:
            reason = (
                f"{saved_world} ranks saved it and {world} load it"
                if saved_world != world
                else f"it has {', '.join(sorted(groups))}"
            )
            raise ConfigError(f"{path} has no {group} for this rank: {reason}")
        saved = groups[group].specs
        for name in [*wanted, *saved]:
            if saved.get(name) != wanted.get(name):
                raise ConfigError(
                    f"{path}: {group} {name} is {_shown(saved.get(name))} in the checkpoint "
                    f"and {_shown(wanted.get(name))} in this run: "
                    "continue with the config it was saved with, or start a new run under another name"
                )
    return {group: groups[group] for group in expect}


def _shown(spec: Spec | None) -> str:
    return "not there" if spec is None else f"{spec[0]} {str(spec[1]).removeprefix('torch.')}"


def _read(path: Path, group: _Group, places: Mapping[str, Place], manifest: Manifest) -> dict[str, Stored]:
    wanted = {
        name: places.get(name, everything(spec[0]))
        for name, spec in group.specs.items()
        if name not in group.ties
    }
    needed = [
        (part, here)
        for part in group.parts
        if (here := {n: b for n, one in part.tensors.items() if (b := list(overlap(wanted[n], one.lies)))})
    ]
    for name, place in wanted.items():
        there = sum(_n_elements(mine) for _, here in needed for mine, _ in here.get(name, ()))
        if there != math.prod(place.shape):
            raise Damaged(f"its files hold {there} of {math.prod(place.shape)} elements of {name}")
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        # all are opened, and their sizes seen, before any memory is taken for what they are said to hold
        files = [
            stack.enter_context(StoredReader(path / part.file, manifest.contents.files[part.file]))
            for part, _ in needed
        ]
        for file, (part, here) in zip(files, needed, strict=True):
            for name, tensor in read_tensors(file, part.tensors, here.keys()):
                if part.tensors[name].lies == wanted[name]:
                    found[name] = tensor
                    continue
                if name not in found:
                    found[name] = torch.empty(wanted[name].shape, dtype=tensor.dtype, device="cpu")
                for mine, theirs in here[name]:
                    found[name][mine].copy_(tensor[theirs])
    for name in wanted.keys() - found.keys():  # without elements
        found[name] = torch.empty(wanted[name].shape, dtype=group.specs[name][1], device="cpu")
    return {name: found[group.ties.get(name, name)] for name in group.specs}


def _n_elements(box: tuple[slice, ...]) -> int:
    return math.prod(axis.stop - axis.start for axis in box)


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
