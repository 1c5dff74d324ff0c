"""Where in a whole tensor lies the part that a rank holds of it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from llmtrain.ranks import TENSOR, column

Range = tuple[int, int]  # begin and end
SHARDS = (Shard, _StridedShard)  # FSDP marks an axis that the tensor axis has split before by the second


class Place(NamedTuple):
    """A part of a tensor: along each axis the ranges that it consists of, in its own order."""

    whole: tuple[int, ...]  # the shape of the tensor
    ranges: tuple[tuple[Range, ...], ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a place in a tensor, of a part of that shape."""
        within = all(
            0 <= begin < end <= n
            for n, axis in zip(self.whole, self.ranges, strict=False)
            for begin, end in axis
        )
        return len(self.ranges) == len(self.whole) and within and self.shape == shape

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(sum(end - begin for begin, end in axis) for axis in self.ranges)


def everything(shape: Iterable[int]) -> Place:
    shape = tuple(shape)
    return Place(shape, tuple(((0, n),) if n else () for n in shape))


def place_of(x: Tensor, splits: tuple[int, ...] = ()) -> Place:
    """Where this rank's part of ``x`` lies.

    A matrix fused of parts, which ``splits`` gives by their rows (``Role.splits``), is split part by part over the
    tensor axis: a rank has its share of each, so that it can compute with them without the others'.
    """
    if not isinstance(x, DTensor):
        return everything(x.shape)
    ranges = list(everything(x.shape).ranges)
    # the tensor axis has split the matrix before the data axis shared out what was left
    axes = zip(_names(x), range(x.device_mesh.ndim), x.placements, strict=True)
    for name, axis, placement in sorted(axes, key=lambda axis: axis[0] != TENSOR):
        if not isinstance(placement, SHARDS):
            continue
        n, i = x.device_mesh.size(axis), x.device_mesh.get_local_rank(axis)
        fused = name == TENSOR and splits and placement.dim == x.ndim - 2
        parts = _parts(splits) if fused else (ranges[placement.dim],)
        ranges[placement.dim] = tuple(piece for part in parts for piece in _chunk(part, n, i))
    return Place(tuple(x.shape), tuple(ranges))


def is_first(x: DTensor) -> bool:
    """Whether no rank before this one holds the same part."""
    axes = zip(x.device_mesh.get_coordinate() or (), x.placements, strict=True)
    first = all(isinstance(placement, SHARDS) or at == 0 for at, placement in axes)
    return first and (TENSOR in _names(x) or column() == 0)


def local(x: Tensor) -> Tensor:
    """The memory of this rank's part, without gradient."""
    with torch.no_grad():
        return x.to_local() if isinstance(x, DTensor) else x.detach()


def cut(x: Tensor, place: Place) -> Tensor:
    """The part of the whole ``x`` that lies at ``place``."""
    for axis, ranges in enumerate(place.ranges):
        pieces = [x.narrow(axis, begin, end - begin) for begin, end in ranges]
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis) if pieces else x.narrow(axis, 0, 0)
    return x


def gathered(x: DTensor, splits: tuple[int, ...] = ()) -> Tensor:
    """The whole of ``x`` on every rank, the parts of a fused matrix again one after another (see ``place_of``)."""
    whole = x.full_tensor()
    for axis, (name, placement) in enumerate(zip(_names(x), x.placements, strict=True)):
        if name == TENSOR and splits and isinstance(placement, SHARDS) and placement.dim == x.ndim - 2:
            n = x.device_mesh.size(axis)
            shares = [share.split([rows // n for rows in splits], -2) for share in whole.chunk(n, -2)]
            return torch.cat([share[part] for part in range(len(splits)) for share in shares], -2)
    return whole


def spread(whole: Tensor, like: DTensor, splits: tuple[int, ...] = ()) -> DTensor:
    """This rank's part of ``whole``, which every rank has, laid out like ``like``."""
    part = cut(whole, place_of(like, splits)).contiguous()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def overlap(a: Place, b: Place) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The boxes of elements that lie in both, as slices of the one part and of the other."""
    yield from _boxes([list(_common(mine, other)) for mine, other in zip(a.ranges, b.ranges, strict=True)])


def _boxes(
    axes: list[list[tuple[slice, slice]]],
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    if not axes:
        yield (), ()
        return
    for first, second in axes[0]:
        for rest, others in _boxes(axes[1:]):
            yield (first, *rest), (second, *others)


def _common(a: tuple[Range, ...], b: tuple[Range, ...]) -> Iterator[tuple[slice, slice]]:
    at = 0
    for begin, end in a:
        other = 0
        for first, last in b:
            low, high = max(begin, first), min(end, last)
            if low < high:
                yield (
                    slice(at + low - begin, at + high - begin),
                    slice(other + low - first, other + high - first),
                )
            other += last - first
        at += end - begin


def _names(x: DTensor) -> tuple[str, ...]:
    return x.device_mesh.mesh_dim_names or ("",) * x.device_mesh.ndim


def _parts(splits: tuple[int, ...]) -> Iterator[tuple[Range, ...]]:
    begin = 0
    for rows in splits:
        yield ((begin, begin + rows),)
        begin += rows


def _chunk(ranges: tuple[Range, ...], n: int, i: int) -> tuple[Range, ...]:
    """Chunk ``i`` of ``n`` of these ranges end to end, as ``torch.chunk`` makes them: the last ones may be short."""
    size = -(-sum(end - begin for begin, end in ranges) // n)
    low, high = size * i, size * (i + 1)
    found, at = [], 0
    for begin, end in ranges:
        first, last = max(begin, begin + low - at), min(end, begin + high - at)
        if first < last:
            found.append((first, last))
        at += end - begin
    return tuple(found)
