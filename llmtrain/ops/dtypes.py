"""The one rule for reductions: at least float32, and float64 stays float64."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
