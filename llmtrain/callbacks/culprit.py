"""Where in a model a number that is not finite came from."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.lit import Pretrain
from llmtrain.objectives.base import Task
from llmtrain.optim.composite import StepReport
from llmtrain.optim.gradients import first_nonfinite
from llmtrain.place import local
from llmtrain.sharding import root_gathered


class Culprit(NamedTuple):
    """Modules in the order of the forward pass; "loss" where all of the model's outputs are finite, and that is not."""

    module: str | None  # the first one whose output is not finite
    parameter: str | None  # where there is none, the first one whose gradient is not finite


def ranks_of(report: StepReport) -> list[int]:
    """The ranks to blame: those whose loss is not finite, else whose norm is not, else the one of the highest loss."""
    for numbers in (report.losses, report.norms):
        if bad := [rank for rank, number in enumerate(numbers) if not math.isfinite(number)]:
            return bad
    return [report.losses.index(max(report.losses))]


def culprit_of(module: Pretrain, batches: Iterable[Any], context: AbstractContextManager[Any]) -> Culprit:
    """What the last step failed at, on the first rank that can say; ``batches`` are those of this rank.

    The forward pass is done once more, on every rank, since a layer may wait for the others. Nothing of the run's state
    moves. Gradients are as the step left them.
    """
    modules = [name or "loss" for name, _ in module.task.named_modules()]
    parameters = list(module.optimizer.weights)
    found = (first_module(module.task, batches, context), first_nonfinite(module.optimizer.weights))
    i, j = _first_of_ranks((modules, parameters), found, module.device)
    if i >= 0:
        return Culprit(modules[i], None)
    return Culprit(None, parameters[j] if j >= 0 else None)


@torch.no_grad()
def first_module(task: Task, batches: Iterable[Any], context: AbstractContextManager[Any]) -> str | None:
    """The first part of ``task`` whose output on ``batches`` is not finite; "loss" where no part of the model's is."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(part: object, args: object, output: object) -> None:
            if not found and not _finite(output):
                found.append(name or "loss")

        return look

    handles = [part.register_forward_hook(watch(name)) for name, part in task.named_modules()]
    try:
        # eager: compiled code does not come by the hooks
        with torch.compiler.set_stance("force_eager"), context, root_gathered(task):
            for batch in batches:
                task(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(output: object) -> bool:
    if isinstance(output, Tensor):
        # what lies on this rank: it looks alone
        return not output.is_floating_point() or bool(torch.isfinite(local(output)).all())
    return all(map(_finite, output)) if isinstance(output, tuple | list) else True


def _first_of_ranks(
    names: Sequence[Sequence[str]], found: Sequence[str | None], device: torch.device
) -> list[int]:
    """Of each kind the index that the first rank with one has found; -1 where none has."""
    own = [-1 if name is None else of.index(name) for of, name in zip(names, found, strict=True)]
    if not dist.is_initialized():
        return own
    every = torch.full((dist.get_world_size(), len(own)), 0, device=device)
    every[dist.get_rank()] = torch.tensor(own, device=device)
    dist.all_reduce(every)
    return [next((int(i) for i in column if i >= 0), -1) for column in every.T.tolist()]
