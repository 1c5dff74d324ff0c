"""Which implementation of an operation this machine runs: probed once, logged once, and open to being forced."""

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_forced: dict[str, str] = {}
_stands_for: list[str] = []  # types of device, the innermost last


@contextmanager
def force(**names: str) -> Iterator[None]:
    """Use the named implementation of an operation: ``force(attention="reference")``; ``auto`` leaves the choice."""
    before = dict(_forced)
    _forced.update({op: name for op, name in names.items() if name != "auto"})
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@contextmanager
def standing_for(device: str) -> Iterator[None]:
    """Take the forms of operations that a type of device takes, wherever tensors are: a dry run has no such device."""
    _stands_for.append(device)
    try:
        yield
    finally:
        _stands_for.pop()


def device_type(x: Tensor) -> str:
    """The type of device whose forms of operations ``x`` takes: its own, if it stands for no other."""
    return _stands_for[-1] if _stands_for else x.device.type


def choose(op: str, x: Tensor, dtype: torch.dtype | None = None) -> str:
    """The implementation of ``op`` for tensors of the kind of ``x``, or of ``dtype``, which they may be turned to."""
    return _forced.get(op) or _probed(op, device_type(x), dtype or x.dtype)


# a compiled graph takes the answer, and does not trace the probing
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _probed(op: str, device: str, dtype: torch.dtype) -> str:
    return _probe(op, device, dtype)


@functools.cache
def _probe(op: str, device: str, dtype: torch.dtype) -> str:
    name = _PROBES[op](device, dtype)
    log.info("%s on %s in %s: %s", op, device, str(dtype).removeprefix("torch."), name)
    return name


def _attention(device: str, dtype: torch.dtype) -> str:
    if device == "cpu":
        return "tiled" if dtype.itemsize < 4 else "by_document"  # SDPA is fast in float32 and float64
    if device == "cuda" and dtype in (torch.float16, torch.bfloat16) and _flash_runs():
        return "flash"
    return "flex" if device == "cuda" and dtype != torch.float64 else "masked"


def _flash_runs() -> bool:
    """Whether the GPU is of Ampere or later; one that is only stood for is taken to be."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


def _experts(device: str, dtype: torch.dtype) -> str:
    grouped = device == "cuda" and dtype != torch.float64  # which F.grouped_mm refuses
    return "grouped" if grouped else "sliced"


def _scan(device: str, dtype: torch.dtype) -> str:
    # its products of float32 are of 10 bits (TF32), which float32 does not mean
    wanted = device == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return "mamba" if wanted and importlib.util.find_spec("mamba_ssm") else "chunked"


_PROBES = {"attention": _attention, "experts": _experts, "scan": _scan}
