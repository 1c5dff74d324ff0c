"""The state of a run as data: named tensors in groups, and JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Spec = tuple[tuple[int, ...], torch.dtype]  # the shape and the type of one tensor
Expect = Mapping[str, Mapping[str, Spec]]  # group -> name -> spec

PER_RANK = frozenset({"rng"})  # groups of which every rank has its own; of all others rank 0's speaks for all


class State(NamedTuple):
    """All that a run continues from."""

    tensors: dict[str, dict[str, Tensor]]  # group ("model", "optimizer", "rng", ...) -> name -> tensor
    values: dict[str, Any]  # JSON: step, rows, averages, ...; the same on every rank


def specs(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Spec]]:
    """What ``load`` is to expect, from tensors like those it shall fill; they may be on the meta device."""
    return {
        group: {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in named.items()}
        for group, named in tensors.items()
    }


def split_ties(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that are different memory, and for every further name of one of them the name that it repeats.

    Only the same elements in the same order are a tie; views that merely overlap are different tensors.
    """
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name, tensor in named.items():
        # empty tensors and those on the meta device have no memory to share
        place = (tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride(), tensor.dtype)
        owner = name if tensor.is_meta or tensor.numel() == 0 else first.setdefault(place, name)
        if owner != name:
            ties[name] = owner
    return {name: tensor for name, tensor in named.items() if name not in ties}, ties
