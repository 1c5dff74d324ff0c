"""Saving beside training: the step pays for a copy of the state, and a thread does the rest."""

import copy
import logging
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from llmtrain import faults, heartbeat
from llmtrain.checkpoint import folders
from llmtrain.checkpoint.commit import save
from llmtrain.checkpoint.find import prune
from llmtrain.checkpoint.state import PER_RANK, Shard, State, Stored, memory, split_ties
from llmtrain.errors import StorageError

log = logging.getLogger(__name__)

PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts


class Saver:
    """Saves the checkpoints of one run one after another on a thread of its own, and then deletes the old ones.

    A failure is raised by the next ``save`` or ``wait``, once. Where the disk refuses, ``on_disk_full`` may also say to
    go on without that checkpoint, or to try again with the copy, for ``wait_seconds``. Of many ranks, each has a
    ``Saver``, and ``barrier`` must be of a process group that nothing else uses, since training goes on meanwhile. It
    keeps a copy of the state, with the memory that this takes, for as long as it lives.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_every: int | None = None,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] | None = None,
        per_rank: Collection[str] = PER_RANK,
        holds: str | None = None,
        on_disk_full: Literal["stop", "continue", "wait"] = "stop",
        wait_seconds: float = 600.0,
    ) -> None:
        self.saved: int | None = None  # the step of the last checkpoint that is on the disk
        self._on_disk_full, self._wait_seconds = on_disk_full, wait_seconds
        self._folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._rank = rank
        self._write = partial(
            save,
            folder,
            rank=rank,
            world=world,
            barrier=barrier,
            per_rank=per_rank,
            holds=holds,
            on_write=faults.written,
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def save(self, step: int, state: State, *, needed: bool = False) -> None:
        """Copy ``state`` to the host's memory and return; waits first for the save before, if it has not ended.

        What is ``needed`` is not gone on without.
        """
        self.wait()
        self._pending = self._thread.submit(self._commit, step, self._snapshot(state), needed)

    @property
    def failed(self) -> bool:
        """Whether ``wait`` would raise, as far as is known."""
        done = self._pending is not None and self._pending.done()
        return done and self._pending is not None and self._pending.exception() is not None

    def wait(self) -> None:
        """Return when the last ``save`` is on the disk; raise what made it fail."""
        if self._pending is None:
            return
        # an interrupt here must not forget the save: it still reads the copy that the next one would overwrite
        with heartbeat.waiting():
            wait([self._pending])
        done, self._pending = self._pending, None
        done.result()

    def _commit(self, step: int, state: State, needed: bool) -> None:
        for pause in self._pauses():
            try:
                self._write(step, state)
                break
            except StorageError as failure:
                # the same on every rank: an attempt is of all of them or of none
                there = folders.of_step(self._folder, step).is_dir()
                if self._on_disk_full == "continue" and not needed:
                    log.error("%s; training goes on without it (checkpoint.on_disk_full=continue)", failure)
                    return
                if pause is None or there:
                    raise
                log.warning("%s; trying again in %g s (checkpoint.on_disk_full=wait)", failure, pause)
                time.sleep(pause)
        self.saved = step
        if self._rank == 0:
            self._prune()

    def _prune(self) -> None:
        try:
            prune(self._folder, keep_last=self._keep_last, keep_every=self._keep_every)
        except StorageError as failure:
            if self._on_disk_full == "stop":
                raise
            log.error("%s; an old checkpoint is left", failure)

    def _pauses(self) -> Iterator[float | None]:
        """Seconds between attempts; None after the last."""
        left = self._wait_seconds if self._on_disk_full == "wait" else 0.0
        for n in count():
            pause = min(PAUSE * 2**n, LONGEST_PAUSE, left)
            if not pause:
                break
            left -= pause
            yield pause
        yield None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            log.error("%s", failure)  # beside what ends the block

    def _snapshot(self, state: State) -> State:
        """A copy on the CPU that shares no memory with ``state``, in which tied tensors are tied."""
        tensors: dict[str, dict[str, Stored]] = {}
        for group, named in state.tensors.items():
            own, ties = split_ties(named)
            copies = {name: self._copied((group, name), stored) for name, stored in own.items()}
            tensors[group] = copies | {alias: copies[name] for alias, name in ties.items()}
        return State(tensors, copy.deepcopy(state.values))

    def _copied(self, address: tuple[str, str], stored: Stored) -> Stored:
        copy = self._copy(address, memory(stored).detach())
        return stored._replace(part=copy) if isinstance(stored, Shard) else copy

    def _copy(self, address: tuple[str, str], tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(address)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        # memory touched for the first time can cost more than all the writing, so it is kept for the next copy
        self._buffers[address] = buffer
        return buffer.copy_(tensor)
