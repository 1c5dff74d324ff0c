"""Examples (trees of NamedTuples of arrays) stacked into a batch (the same trees, of tensors)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def collate(examples: Sequence[Any]) -> Any:
    """Stack along a new first axis; integers become int64, since that is what indexes."""
    first = examples[0]
    if isinstance(first, tuple):
        parts = [collate(part) for part in zip(*examples, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    stacked = np.stack(examples)
    return torch.from_numpy(stacked.astype(np.int64) if stacked.dtype.kind in "iu" else stacked)


def to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    parts = [to_device(part, device) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
