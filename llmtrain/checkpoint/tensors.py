"""The safetensors format (https://github.com/huggingface/safetensors), written and read one tensor at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape,
offsets), and the raw elements. We write it ourselves because the hash, the fsync and a memory bounded by
one tensor then cost nothing, and read it ourselves because then no byte reaches a tensor before the header
is known to be the one that was written.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
import xxhash
from torch import Tensor

from llmtrain.checkpoint.files import Damaged, NewFile, StoredReader
from llmtrain.checkpoint.manifest import DTYPES, StoredTensor
from llmtrain.checkpoint.state import Shard, Stored, memory

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def describe(named: Mapping[str, Stored]) -> dict[str, StoredTensor]:
    """What is stored of each tensor, in the order in which it is laid out."""
    tensors = {name: memory(stored) for name, stored in named.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.layout is not torch.strided:
            raise TypeError(f"{name}: safetensors cannot hold {tensor.dtype} with layout {tensor.layout}")
    # wide elements first, as the reference implementation lays them out: then each tensor is aligned to its own
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    return {
        name: StoredTensor(
            dtype=NAMES[tensors[name].dtype],
            shape=tuple(tensors[name].shape),
            place=stored.place if isinstance(stored := named[name], Shard) else None,
        )
        for name in order
    }


def header(stored: Mapping[str, StoredTensor]) -> bytes:
    """All that comes before the elements: a pure function of names, types and shapes in their order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in stored.items():
        start, end = end, end + n_bytes(tensor)
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def n_bytes(stored: StoredTensor) -> int:
    return math.prod(stored.shape) * DTYPES[stored.dtype].itemsize


def write_tensors(file: NewFile, named: Mapping[str, Stored]) -> dict[str, StoredTensor]:
    """Write tensors, on any device; what was stored of each, with its hash."""
    stored = describe(named)
    file.write(header(stored))
    hashed = {}
    for name, one in stored.items():
        data = _bytes_of(memory(named[name]).detach().cpu().contiguous())
        file.write(data)
        hashed[name] = replace(one, hash=xxhash.xxh3_128_hexdigest(data))
    return hashed


def read_tensors(
    file: StoredReader, stored: Mapping[str, StoredTensor], wanted: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The ``wanted`` tensors of a file whose header is exactly the one that ``stored`` makes, else ``Damaged``.

    Nothing in the header is believed, so no shape or offset in it can make us allocate or read beyond the
    file, which has the size that ``stored`` comes to. Only what is wanted is read, one tensor at a time, and compared
    with its own hash; in the first version of the format, which has none, the whole file is read, and what came from it
    is known to be right only once the iterator has ended.
    """
    expected = header(stored)
    size = len(expected) + sum(map(n_bytes, stored.values()))
    if file.size != size or file.read(len(expected)) != expected:
        raise Damaged(f"{file.name} does not hold the tensors that its manifest lists")
    alone = all(stored[name].hash is not None for name in wanted)
    at = len(expected)
    for name, one in stored.items():
        if name in wanted or not alone:
            tensor = torch.empty(one.shape, dtype=DTYPES[one.dtype], device="cpu")
            data = _bytes_of(tensor)
            file.seek(at)
            file.read_into(data)
            if alone and xxhash.xxh3_128_hexdigest(data) != one.hash:
                raise Damaged(
                    f"{file.name} is not what was written: the hash of {name} is not the one in its manifest"
                )
            if name in wanted:
                yield name, tensor
        at += n_bytes(one)
    if not alone:
        file.finish()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat: np.ndarray = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.data
