"""What a machine ran out of, in one line: disk, memory, open files, shared memory."""

import contextlib
import errno
import gc
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtrain.batch import halved
from llmtrain.errors import ConfigError, Retry, StorageError, UserError
from llmtrain.lit import Pretrain
from llmtrain.run import Run
from llmtrain.setup import Setup

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "start new thread")
_SHARED = ("shared memory", "DataLoader timed out", "</torch_", "Bus error", "/dev/shm", "/psm_")


class OutOfMemory(UserError):
    """The exit code says configuration where the first step of a start did not fit, since it never will, else retry."""

    def __init__(self, message: str, *, steps_done: int) -> None:
        super().__init__(message)
        self.exit_code = Retry.exit_code if steps_done > 0 else ConfigError.exit_code


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn a limit of the machine that shows while a run works into a UserError of one line."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        limit = next(filter(None, (_limit(cause, folder) for cause in _chain(error))), None)
        if limit is None:
            raise
        raise limit from error


@contextlib.contextmanager
def told_of_memory(setup: Setup, module: Pretrain, micro_rows: int, first_step: int) -> Iterator[None]:
    """Turn the end of memory while training into ``OutOfMemory``: an estimate, and the keys that help most."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_memory(error):
            raise
        run, step = setup.run, module.progress.step
        device = next(module.task.parameters()).device
        state, activations = estimate(setup, micro_rows)
        knobs = " or ".join(_knobs(run, setup, micro_rows, mostly_state=state > activations))
        raise OutOfMemory(
            f"out of memory at step {step + 1}, {_there(device)}: weights, gradients and the optimiser's state take "
            f"about {_gb(state)}, the activations of {micro_rows} rows x {run.seq_len} positions about "
            f"{_gb(activations)}. Set {knobs}; the same command continues",
            steps_done=step - first_step,
        ) from error


def check_shared_memory(example: Any, micro_rows: int, workers: int) -> None:
    """Raise StorageError where the batches that ``workers`` read ahead would not fit: they would wait forever."""
    needed = 3 * workers * micro_rows * _n_bytes(example)  # two are read ahead, and one is in hand
    free = _shared_free()
    if workers and free is not None and needed > free:
        raise _no_shared_memory(needed)


def is_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine has ended; torch has no one type for it."""
    if any(said in str(error) for said in _SHARED):
        return False
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        said in str(error) for said in _MEMORY
    )


def estimate(setup: Setup, micro_rows: int) -> tuple[int, int]:
    """(bytes of weights, gradients and moments, bytes of the activations of so many rows), both rough.

    Activations are counted as 17 values a position, a layer and a unit of width, those of a transformer without its
    attention matrix (Korthikanti et al. 2022, arXiv:2205.05198).
    """
    run = setup.run
    parameters = list(setup.task.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    copies = 4 if run.optim.ema is None else 5  # weights, gradients, two moments, and the average
    n_layers, d_model = run.sized(setup.prepared.vocab.size).shape
    positions = sum(one.tokens * one.share for one in run.objective.passes(run.seq_len))
    width = {"bf16": 2, "fp32": 4, "fp64": 8}[run.trainer.chosen_precision()]
    return copies * weights, round(17 * width * micro_rows * positions * n_layers * d_model)


def release() -> None:
    """Give back the memory of what is referred to no more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _limit(error: BaseException, folder: Path) -> UserError | None:
    """What ``error`` says that the machine ran out of; None where it is of another kind."""
    number = getattr(error, "errno", None)
    if number in {errno.EMFILE, errno.ENFILE} or "Too many open files" in str(error):
        return _too_many_files()
    name = getattr(error, "filename", None)
    # a semaphore lies there too, and says no name
    shared = _shared_free()
    nameless = number == errno.ENOSPC and name is None and shared is not None and shared < 1 << 20
    if nameless or any(said in f"{error} {name}" for said in _SHARED):
        return _no_shared_memory()
    if number == errno.ENOMEM or is_of_memory(error):
        return _no_memory(error)
    if number not in _DISK:
        return None
    free = shutil.disk_usage(folder).free
    return StorageError(
        f"{name or folder}: {os.strerror(number)}; {free:,} bytes are free there: make "
        "room, or put runs elsewhere (runs=FOLDER); the same command continues"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it was raised from: a library may stumble over its own clearing up."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _knobs(run: Run, setup: Setup, micro_rows: int, *, mostly_state: bool) -> list[str]:
    """Three at most, the best first: what keeps the run's numbers before what makes it another run."""
    fewer = halved(run, micro_rows)
    chunk = getattr(run.objective, "chunk_rows", None)
    found = [f"micro_rows={fewer}"] if fewer else []
    if not run.objective.accumulates and (chunk is None or chunk > 1):
        found.append(f"objective.chunk_rows={max(1, (chunk or run.batch_rows) // 2)}")
    if run.trainer.activation_checkpointing == "none" and not mostly_state:
        found.append("trainer.activation_checkpointing=block")
    if run.trainer.chosen_precision() == "fp32":
        found.append("trainer.precision=bf16")
    smaller = ["a smaller size=", f"seq_len={run.seq_len // 2}"]
    found += smaller if mostly_state else reversed(smaller)
    if mostly_state:  # fewer rows would leave the larger part
        found = [*found[-2:], *found[:-2]]
    return found[:3]


def _there(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{_gb(free)} of {_gb(total)} free on {device}"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit not in (resource.RLIM_INFINITY, -1) and limit < total:
        return f"{_gb(limit)} allowed by ulimit -v"
    return f"{_gb(total)} in this machine"


def _no_memory(error: BaseException) -> UserError:
    said = " ".join(str(error).split())[:200] or "the system gives none"
    return OutOfMemory(
        f"out of memory, {_there(torch.device('cpu'))} ({said}): set a smaller size=, fewer data.workers, or raise the "
        "limit",
        steps_done=0,
    )


def _too_many_files() -> StorageError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return StorageError(
        f"too many open files: the limit is {limit}; raise it (ulimit -n 4096), or set fewer data.loader_workers and "
        "data.workers; the same command continues"
    )


def _no_shared_memory(needed: int | None = None) -> StorageError:
    need = "" if needed is None else f", {needed:,} are needed"
    return StorageError(
        f"shared memory is full: {_shared_free() or 0:,} bytes are free in /dev/shm{need}; set data.loader_workers=0, "
        "or make it larger (docker run --shm-size=8g); the same command continues"
    )


def _n_bytes(tree: Any) -> int:
    return sum(map(_n_bytes, tree)) if isinstance(tree, tuple) else int(np.asarray(tree).nbytes)


def _shared_free() -> int | None:
    """Bytes; none where shared memory is no file system, as on macOS."""
    return shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
