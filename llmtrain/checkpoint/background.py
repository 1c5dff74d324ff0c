"""Saving beside training: the step pays for a copy of the state, and a thread does the rest."""

import copy
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from llmtrain import faults
from llmtrain.checkpoint.commit import save
from llmtrain.checkpoint.find import prune
from llmtrain.checkpoint.state import PER_RANK, Shard, State, Stored, memory, split_ties

log = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints of one run one after another on a thread of its own, and then deletes the old ones.

    A failure is raised by the next ``save`` or ``wait``, once. Of many ranks, each has a ``Saver``, and
    ``barrier`` must be of a process group that nothing else uses, since training goes on meanwhile. It keeps
    a copy of the state, with the memory that this takes, for as long as it lives.
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
    ) -> None:
        self._folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._rank = rank
        self._write = partial(
            save,
            folder,
            rank=rank,
            world=world,
            barrier=barrier,
            per_rank=per_rank,
            on_write=faults.written,
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def save(self, step: int, state: State) -> None:
        """Copy ``state`` to the host's memory and return; waits first for the save before, if it has not ended."""
        self.wait()
        self._pending = self._thread.submit(self._commit, step, self._snapshot(state))

    def wait(self) -> None:
        """Return when the last ``save`` is on the disk; raise what made it fail."""
        if self._pending is None:
            return
        # an interrupt here must not forget the save: it still reads the copy that the next one would overwrite
        wait([self._pending])
        done, self._pending = self._pending, None
        done.result()

    def _commit(self, step: int, state: State) -> None:
        self._write(step, state)
        if self._rank == 0:
            prune(self._folder, keep_last=self._keep_last, keep_every=self._keep_every)

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
