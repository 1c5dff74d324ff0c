"""Freed memory on a CPU: kept by the allocator from step to step, and given back to the system where it piles up."""

import ctypes
import functools
import os
from collections.abc import Callable

from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names for what mallopt sets
_NEVER = (1 << 31) - 1  # bytes, the most that it takes


def keep_freed() -> bool:
    """Let this process keep what it frees, where glibc would return large blocks at once: every step needs them again.

    Each page that is taken anew is cleared first. Whoever sets glibc's own variables is left alone. Returns whether
    it was done.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = _of_libc("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _NEVER) and mallopt(_TRIM_THRESHOLD, _NEVER))


def give_back(device: str) -> None:
    """Return the freed memory of this process to the system, where its allocator would keep it: glibc on a CPU.

    Blocks of varying sizes, such as chunk after chunk of activations, otherwise pile up in holes that no later one
    fits (measured: 450 MB a chunk while live tensors stayed under 16 MB). Takes milliseconds.
    """
    if device == "cpu" and (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def given_back_before_its_gradient(x: Tensor) -> Tensor:
    """``x``; when its gradient arrives in the backward pass, what was freed until then is given back first."""
    if x.requires_grad:
        device = x.device.type
        x.register_hook(lambda grad: give_back(device))
    return x


@functools.cache
def _of_libc(name: str) -> Callable[..., int] | None:
    """A function that only glibc has."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library
        return None
    return found
