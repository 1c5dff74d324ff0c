"""The safetensors format (https://github.com/huggingface/safetensors), written and read one tensor at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape,
offsets), and the raw elements. We write it ourselves because the hash, the fsync and a memory bounded by
one tensor then cost nothing, and read it ourselves because then no byte reaches a tensor before the header
is known to be the one that was written.
"""

import json
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from llmtrain.checkpoint.files import Damaged, NewFile, StoredReader
from llmtrain.checkpoint.manifest import DTYPES, StoredTensor

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def describe(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """What is stored of each tensor, in the order in which it is laid out."""
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.layout is not torch.strided:
            raise TypeError(f"{name}: safetensors cannot hold {tensor.dtype} with layout {tensor.layout}")
    # wide elements first, as the reference implementation lays them out: then each tensor is aligned to its own
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    return {
        name: StoredTensor(dtype=NAMES[tensors[name].dtype], shape=tuple(tensors[name].shape))
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


def write_tensors(file: NewFile, tensors: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Write ``tensors``, on any device, as ``stored`` describes them."""
    file.write(header(stored))
    for name in stored:
        file.write(_bytes_of(tensors[name].detach().cpu().contiguous()))


def read_tensors(file: StoredReader, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The tensors of a file whose header is exactly the one that ``stored`` makes, else ``Damaged``.

    Nothing in the header is believed, so no shape or offset in it can make us allocate or read beyond the
    file, which has the size that ``stored`` comes to.
    """
    expected = header(stored)
    size = len(expected) + sum(map(n_bytes, stored.values()))
    if file.size != size or file.read(len(expected)) != expected:
        raise Damaged(f"{file.name} does not hold the tensors that its manifest lists")
    tensors = {}
    for name, tensor in stored.items():
        tensors[name] = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device="cpu")
        file.read_into(_bytes_of(tensors[name]))
    file.finish()
    return tensors


def _bytes_of(tensor: Tensor) -> memoryview:
    flat: np.ndarray = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.data
