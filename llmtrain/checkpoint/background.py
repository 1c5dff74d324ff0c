"""Saving beside training: the step pays for a copy of the state, and a thread does the rest."""

import copy
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from llmtrain.checkpoint.commit import save
from llmtrain.checkpoint.find import prune
from llmtrain.checkpoint.state import PER_RANK, State, split_ties


class Saver:
    """Saves the checkpoints of one run one after another on a thread of its own, and then deletes the old ones.

    A failure is raised by the next ``save`` or ``wait``, once. Of many ranks, each has a ``Saver``, and
    ``barrier`` must be of a process group that nothing else uses, since training goes on meanwhile.
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
        self._write = partial(save, folder, rank=rank, world=world, barrier=barrier, per_rank=per_rank)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, state: State) -> None:
        """Copy ``state`` to the host's memory and return; waits first for the save before, if it has not ended."""
        self.wait()
        self._pending = self._thread.submit(self._commit, step, snapshot(state))

    def wait(self) -> None:
        """Return when the last ``save`` is on the disk; raise what made it fail."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _commit(self, step: int, state: State) -> None:
        self._write(step, state)
        if self._rank == 0:
            prune(self._folder, keep_last=self._keep_last, keep_every=self._keep_every)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()


def snapshot(state: State) -> State:
    """A copy on the CPU that shares no memory with ``state``, in which tied tensors are tied."""
    return State(
        {group: _copies(named) for group, named in state.tensors.items()}, copy.deepcopy(state.values)
    )


def _copies(named: dict[str, Tensor]) -> dict[str, Tensor]:
    own, ties = split_ties(named)
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
    return copies | {alias: copies[name] for alias, name in ties.items()}
