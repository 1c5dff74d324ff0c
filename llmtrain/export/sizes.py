"""Whether a Hugging Face folder can hold what its config describes, seen before a byte is allocated for it."""

import json
import math
import re
from pathlib import Path
from typing import Any

from llmtrain.errors import ConfigError

LONGEST = 100 << 20  # bytes of a header: the limit of the format's own reader
_SIZE = re.compile(r"(_size|_dim|_rank|_kernel|_heads|_groups|_layers|_experts)$|^(num|n)_|^expand$")
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def check_sizes(folder: Path, config: dict[str, Any]) -> int:
    """The number of values in the folder's safetensors.

    Raises ConfigError where a header describes other bytes than its file has, or where a size in ``config`` is
    more than all the values there: no file can then hold the weights that it means.
    """
    n_values = sum(_values_in(path) for path in sorted(folder.glob("*.safetensors")))
    for key, value in _sizes(config):
        if value > n_values:
            raise ConfigError(
                f"{folder / 'config.json'}: {key}={value:,} is more than the {n_values:,} values in its files"
            )
    layers = [n for key, n in _sizes(config) if key.endswith("_hidden_layers")]
    width = min((n for key, n in _sizes(config) if key.endswith("hidden_size")), default=1)
    if sum(layers) * width > n_values:  # each has a norm of that width, at the least
        raise ConfigError(
            f"{folder / 'config.json'}: {sum(layers):,} layers are more than its files can hold"
        )
    return n_values


def _sizes(node: Any, prefix: str = "") -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, dict):
                found += _sizes(value, f"{prefix}{key}.")
            elif isinstance(value, int) and _SIZE.search(key):
                found.append((f"{prefix}{key}", value))
    return found


def _values_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8 - length
            if length > LONGEST or size < 0:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            counts = {name: math.prod(_shape(entry["shape"])) for name, entry in header.items()}
            described = sum(n * _BYTES[header[name]["dtype"]] for name, n in counts.items())
            if described != size:
                raise ValueError(f"its header describes {described:,} bytes, and it has {size:,}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be opened: it is no whole safetensors file ({error})") from None
    return sum(counts.values())


def _shape(shape: Any) -> list[int]:
    if not (isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise ValueError(f"{shape!r} is no shape")
    return shape
