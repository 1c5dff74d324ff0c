"""Faults on purpose: ``LLMTRAIN_FAULT="kill@step=7;enospc@save=2;nan@step=9,rank=1"`` breaks a command where it says.

What a run promises to survive is proved by the real command breaking at a stated point: ``KIND@POINT=N[,KEY=VALUE]``,
several of them with ``;``. Where ``LLMTRAIN_FAULT`` is unset, a point costs one look at an empty list.

- N counts what has been reached in this start, from 1; at ``step`` and ``grad`` it is the number of optimiser steps
  done, and ``*`` is every time.
- ``rank=R`` limits it to one rank, ``times=K`` (1; with ``*`` no limit) is how often it strikes in the life of a run:
  ``.faults`` in the run's folder remembers, so that a restart does not meet the same kill again.
- ``seconds=S`` is how long ``slow`` takes (0.1), ``by=X`` what ``spike`` multiplies with (100).
"""

import contextlib
import errno
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, fields
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.errors import ConfigError
from llmtrain.typos import did_you_mean, nearest

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "LLMTRAIN_FAULT"
MARKER = ".faults"  # in the run's folder: a line for each fault that has struck

POINTS = {
    "start": "the run's folder is locked, and nothing else is done",
    "step": "an optimiser step begins",
    "grad": "gradients are there, and the optimiser has not moved",
    "save": "a checkpoint is about to be written",
    "write": "a part of a checkpoint has been written, synced or renamed",
    "delete": "a checkpoint that is no longer kept is about to be deleted, and once more when it has lost its name",
    "eval": "held-out rows are about to be scored",
    "end": "all steps are done and saved, and the record is not written",
    "exit": "all is written, and what is left is to exit",
}
SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "int": signal.SIGINT,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
}
REFUSALS = {
    name.lower(): getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES")
}
NUMBERS = ("nan", "inf", "spike")
KINDS = (*SIGNALS, *REFUSALS, *NUMBERS, "hang", "slow", "raise", "oom")


@dataclass(frozen=True)
class Fault:
    text: str  # as it was written
    kind: str
    point: str
    n: int | None  # none: every time
    rank: int | None = None  # none: all
    times: int | None = 1  # none: no limit
    seconds: float = 0.1
    by: float = 100.0

    def meets(self, n: int) -> bool:
        return self.n in {None, n} and self.rank in {None, rank()}


_armed: list[Fault] = []
_reached: Counter[str] = Counter()  # points without a number of their own, in this process
_struck: Counter[str] = Counter()  # faults by ``_line``, in the life of the run
_folder: Path | None = None


def arm(text: str) -> None:
    """Strike from now on as ``text`` says; empty: never. Raises ConfigError in one line for what it cannot mean."""
    global _folder
    _armed[:] = [parse(clause.strip()) for clause in text.split(";") if clause.strip()]
    _reached.clear()
    _struck.clear()
    _folder = None


def remember_in(folder: Path) -> None:
    """From now on, what has struck is kept in a run's folder; what struck in earlier starts counts."""
    global _folder
    if not _armed:
        return
    _folder = folder
    if (folder / MARKER).exists():
        _struck.update((folder / MARKER).read_text(encoding="utf-8").splitlines())


def at(point: str, n: int | None = None) -> None:
    """Break here, if it is time. ``n`` is given where the point has a number of its own."""
    if not _armed:
        return
    for fault in _due(point, n):
        if fault.kind not in NUMBERS:
            _remember(fault)
            _strike(fault)


def written(what: str) -> None:
    """``at("write")``, for whoever is told of each thing that is written."""
    at("write")


def poisoned(tensor: "Tensor", point: str, n: int) -> "Tensor":
    """``tensor``; where it is time, a copy whose first element is no number, or far too large."""
    if not _armed:
        return tensor
    for fault in _due(point, n):
        if fault.kind in NUMBERS:
            _remember(fault)
            tensor = tensor.clone()
            tensor.view(-1)[0] *= {"nan": nan, "inf": inf, "spike": fault.by}[fault.kind]
    return tensor


def parse(text: str) -> Fault:
    """One fault. Raises ConfigError."""
    found = re.fullmatch(r"(\w+)@(\w+)=(\d+|\*)((?:,\w+=[^,=]+)*)", text)
    if not found:
        raise ConfigError(
            f"{VARIABLE}: {text!r} is not KIND@POINT=N[,KEY=VALUE], as in kill@step=7 or nan@step=9,rank=1"
        )
    kind, point, n, rest = found.groups()
    _known(text, "kind", kind, KINDS)
    _known(text, "point", point, POINTS)
    if kind in NUMBERS and point not in {"step", "grad"}:
        raise ConfigError(
            f"{VARIABLE}: {text!r}: {kind} is a matter of step or grad, and there are no numbers at {point}"
        )
    if point == "grad" and kind not in NUMBERS:
        raise ConfigError(f"{VARIABLE}: {text!r}: at grad there is only {', '.join(NUMBERS)}: use step")
    given: dict[str, Any] = {"times": None} if n == "*" else {}
    for word in rest.split(",")[1:]:
        key, _, value = word.partition("=")
        _known(text, "key", key, [f.name for f in fields(Fault)][4:])
        given[key] = _number(text, key, value)
    return Fault(text, kind, point, None if n == "*" else int(n), **given)


def rank() -> int:
    """Of this process among those that train together, by whoever started them."""
    for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if key in os.environ:
            return int(os.environ[key])
    return 0


def _known(text: str, what: str, name: str, names: Any) -> None:
    if name not in names:
        raise ConfigError(
            f"{VARIABLE}: {text!r}: unknown {what} {name}: {did_you_mean(nearest(name, names), names)}"
        )


def _number(text: str, key: str, value: str) -> float | int:
    kind: type[float] | type[int] = float if key in {"seconds", "by"} else int
    try:
        number: float | int = kind(value)
    except ValueError:
        number = -1
    if number < 0 or (key == "times" and number == 0):
        raise ConfigError(
            f"{VARIABLE}: {text!r}: {key}={value} must be a number{', at least 1' if key == 'times' else ''}"
        )
    return number


def _due(point: str, n: int | None) -> list[Fault]:
    if n is None:
        _reached[point] += 1
        n = _reached[point]
    return [
        f
        for f in _armed
        if f.point == point and f.meets(n) and (f.times is None or _struck[_line(f)] < f.times)
    ]


def _line(fault: Fault) -> str:
    return f"{fault.text} on rank {rank()}"


def _remember(fault: Fault) -> None:
    if fault.times is None:
        return
    _struck[_line(fault)] += 1
    if _folder is not None:
        with contextlib.suppress(OSError), (_folder / MARKER).open("a", encoding="utf-8") as marker:
            marker.write(f"{_line(fault)}\n")


def _strike(fault: Fault) -> None:
    match fault.kind:
        case kind if kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[kind])
        case kind if kind in REFUSALS:
            raise OSError(REFUSALS[kind], os.strerror(REFUSALS[kind]))
        case "slow":
            time.sleep(fault.seconds)
        case "hang":
            while True:
                time.sleep(3600)
        case "oom":
            import torch

            raise torch.OutOfMemoryError(f"{VARIABLE}: {fault.text}")
        case "raise":
            raise RuntimeError(f"{VARIABLE}: {fault.text}")
