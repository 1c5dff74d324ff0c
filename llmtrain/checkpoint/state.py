"""The state of a run as data: named tensors in groups, and JSON."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmtrain.place import Place

Spec = tuple[tuple[int, ...], torch.dtype]  # the shape and the type of one tensor
Expect = Mapping[str, Mapping[str, Spec]]  # group -> name -> spec

PER_RANK = frozenset({"rng"})  # groups of which every rank has its own; of all others rank 0's speaks for all


class Shard(NamedTuple):
    """This rank's part of a tensor that is spread over ranks."""

    part: Tensor
    place: Place  # where in the whole it lies
    first: bool  # whether this rank writes it: another may hold the same part


Stored = Tensor | Shard


class State(NamedTuple):
    """All that a run continues from."""

    tensors: dict[str, dict[str, Stored]]  # group ("model", "optimizer", "rng", ...) -> name -> tensor
    values: dict[str, Any]  # JSON: step, rows, averages, ...; the same on every rank


def memory(stored: Stored) -> Tensor:
    """What this rank holds of it."""
    return stored.part if isinstance(stored, Shard) else stored


def specs(tensors: Mapping[str, Mapping[str, Stored]]) -> dict[str, dict[str, Spec]]:
    """What ``load`` is to expect, from tensors like those it shall fill; they may be on the meta device."""
    return {
        group: {name: (_whole(stored), memory(stored).dtype) for name, stored in named.items()}
        for group, named in tensors.items()
    }


def places(tensors: Mapping[str, Mapping[str, Stored]]) -> dict[str, dict[str, Place]]:
    """Which parts ``load`` is to read, from tensors like those it shall fill; what is not here is read whole."""
    return {
        group: {name: stored.place for name, stored in named.items() if isinstance(stored, Shard)}
        for group, named in tensors.items()
    }


def n_bytes(stored: Stored) -> int:
    """Of the whole tensor."""
    return math.prod(_whole(stored)) * memory(stored).itemsize


def split_ties(named: Mapping[str, Stored]) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors that are different memory, and for every further name of one of them the name that it repeats.

    Only the same elements in the same order are a tie; views that merely overlap are different tensors.
    """
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name, stored in named.items():
        tensor = memory(stored)
        # empty tensors and those on the meta device have no memory to share
        place = (tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride(), tensor.dtype)
        owner = name if tensor.is_meta or tensor.numel() == 0 else first.setdefault(place, name)
        if owner != name:
            ties[name] = owner
    return {name: tensor for name, tensor in named.items() if name not in ties}, ties


def _whole(stored: Stored) -> tuple[int, ...]:
    return stored.place.whole if isinstance(stored, Shard) else tuple(stored.shape)
