"""When a run's state is written and how it is put back; what is on disk is ``checkpoint``'s."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from llmtrain.callbacks.base import AfterStep
from llmtrain.callbacks.settings import Checkpointing
from llmtrain.checkpoint import (
    Saver,
    Shard,
    State,
    Stored,
    estimate_bytes,
    find,
    load,
    memory,
    path_of,
    places,
    preflight,
    prune,
    specs,
)
from llmtrain.data.cursor import cursor_in
from llmtrain.errors import StorageError
from llmtrain.lit import Pretrain
from llmtrain.nn.roles import roles
from llmtrain.place import is_first, local, place_of
from llmtrain.ranks import share, sum_shares

log = logging.getLogger(__name__)


class Checkpoints(AfterStep):
    """Saves every ``every`` steps, beside training, and at the end, finished or interrupted."""

    def __init__(self, cfg: Checkpointing, folder: Path, *, values: dict[str, Any], holds: str | None = None):
        self.cfg, self.folder, self.holds = cfg, folder, holds
        self.values = values  # saved with each: what the state belongs to
        self.saver: Saver | None = None
        self._saved: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        world = dist.get_world_size() if dist.is_initialized() else 1
        # a group of its own: the thread that saves must not mix its messages with those of training
        group = dist.new_group(backend="gloo") if world > 1 else None
        self.saver = Saver(
            self.folder,
            keep_last=self.cfg.keep_last,
            keep_every=self.cfg.keep_every,
            on_disk_full=self.cfg.on_disk_full,
            wait_seconds=self.cfg.wait_seconds,
            holds=self.holds,
            rank=trainer.global_rank,
            world=world,
            barrier=(lambda: dist.barrier(group)) if group is not None else None,
        )
        needed = estimate_bytes(state_of(module))  # every rank: the sums in it are made together
        if trainer.is_global_zero:
            preflight(self.folder, needed)
        progress = module.progress
        # what a resumed run came from is already there
        self._saved = self.saver.saved = progress.step if progress.step > progress.branch_step else None

    def after_step(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        if not dist.is_initialized():  # else all ranks must stop at the same step: at the next save
            self.raise_failure()
        if self.cfg.every is not None and module.progress.step % self.cfg.every == 0:
            self.save(module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        self.finish()
        self._saved = self.saver.saved if self.saver else None  # not what was gone on without
        self.save(module, needed=True)
        self.finish()  # before the last evaluation, which may take long, and which a signal ends at once

    def save(self, module: Pretrain, *, needed: bool = False) -> None:
        if self._saved == module.progress.step:
            return
        assert self.saver is not None, "training has started"
        with module.clock.paused():
            state = state_of(module)
            values = state.values | self.values
            self.saver.save(module.progress.step, state._replace(values=values), needed=needed)
        self._saved = module.progress.step

    def go_back(self, module: Pretrain) -> None:
        """Put the state of the newest checkpoint in the place of the module's, the same one on every rank.

        Raises StorageError where none is valid any more.
        """
        self.finish()
        # only the first rank holds the run's lock, so only it may set damaged checkpoints aside
        path = find(self.folder) if module.global_rank == 0 else None
        step = torch.tensor(-1 if path is None else int(path.name[5:]), device=module.device)
        if dist.is_initialized():
            dist.broadcast(step, src=0)
        if step < 0:
            raise StorageError(f"{self.folder} has no valid checkpoint to go back to: see the log")
        restore(module, path_of(self.folder, int(step)))
        self._saved = module.progress.step

    def prune(self, rank: int) -> None:
        """Delete what an earlier start was killed before it deleted, where no save comes that would."""
        if rank == 0:
            prune(self.folder, keep_last=self.cfg.keep_last, keep_every=self.cfg.keep_every)

    def raise_failure(self) -> None:
        """Raise what made the last save fail, if it is known to have failed."""
        if self.saver is not None and self.saver.failed:
            self.saver.wait()

    def finish(self) -> None:
        """Return when all that was saved is on the disk; raises what made saving fail."""
        if self.saver is not None:
            self.saver.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """``finish``; a failure beside the error that ends the block is logged, so that it does not take its place."""
        try:
            self.finish()
        except Exception as failure:
            if error is None:
                raise
            log.error("%s", failure)


def state_of(module: Pretrain) -> State:
    """Everything that the next step depends on."""
    progress = module.progress
    sums: dict[str, Stored] = {name: _summed(tensor) for name, tensor in progress.tensors().items()}
    return State(
        tensors={
            "model": _stored(module.task.state_dict(keep_vars=True), module),
            "optimizer": _stored(module.optimizer.tensors(), module),
            "averages": sums,
            "rng": _rng(),
        },
        values=progress.values() | {"optimizer": module.optimizer.counters()},
    )


def restore(module: Pretrain, path: Path, *, weights_alone: bool = False) -> None:
    """Put the state in ``path`` back into a module whose optimiser is built.

    Raises ConfigError where a tensor does not fit.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    wanted = ("model",) if weights_alone else ("model", "optimizer", "averages")
    own = {group: named for group, named in state_of(module).tensors.items() if group in wanted}
    state = load(path, expect=specs(own), places=places(own), rank=rank, world=world)
    for name, stored in own["model"].items():
        memory(stored).copy_(memory(state.tensors["model"][name]))
    if weights_alone:
        return
    module.optimizer.load_tensors(
        {name: memory(stored) for name, stored in state.tensors["optimizer"].items()}
    )
    module.optimizer.load_counters(state.values["optimizer"])
    progress, saved = module.progress, state.values
    progress.step, progress.cursor = saved["step"], cursor_in(saved)
    progress.branch_step, progress.branch_rows = saved["branch_step"], saved["branch_rows"]
    progress.seconds, progress.wall_before = saved["seconds"], saved["wall"]
    for name, tensor in progress.tensors().items():
        # the sums of all shares were saved as one: the first goes on with it
        tensor.copy_(memory(state.tensors["averages"][name]) if share() == 0 else torch.zeros_like(tensor))
    rng = load(path, only={"rng"}, rank=rank, world=world).tensors.get("rng", {})
    _restore_rng({name: memory(stored) for name, stored in rng.items()})


def _stored(tensors: Mapping[str, torch.Tensor], module: Pretrain) -> dict[str, Stored]:
    """What of each a rank holds and where that lies; state of the optimiser lies as the parameter it is named after."""
    fused = {name: role.splits for name, role in roles(module.task).items() if role.splits}

    def splits(name: str) -> tuple[int, ...]:
        while name and name not in fused:
            name = name.partition(".")[2]  # the optimiser puts rule and quantity before a parameter's name
        return fused.get(name, ())

    return {
        name: Shard(local(tensor), place_of(tensor, splits(name)), is_first(tensor))
        if isinstance(tensor, DTensor)
        else tensor.detach()
        for name, tensor in tensors.items()
    }


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.clone()
    sum_shares(total)
    return total


def _rng() -> dict[str, Stored]:
    rng: dict[str, Stored] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return rng


def _restore_rng(rng: dict[str, torch.Tensor]) -> None:
    """``rng`` is empty after a change of the number of ranks: each had its own."""
    if "cpu" in rng:
        torch.set_rng_state(rng["cpu"])
    if "cuda" in rng and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng["cuda"])
