"""A task of which every rank holds a part: how it is split, and how its parts get their values."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from llmtrain.nn.model import Model
from llmtrain.nn.roles import roles
from llmtrain.objectives.base import Task
from llmtrain.place import cut, local, place_of
from llmtrain.ranks import DATA, TENSOR

Values = Callable[[Model], Iterable[tuple[str, Tensor]]]  # every parameter's whole value, one after another


def shard(task: Task, grid: DeviceMesh, *, device: torch.device, dtype: torch.dtype, values: Values) -> None:
    """Leave of ``task``, which is on the meta device, this rank's part, on ``device`` and with its values.

    Beyond its part, a rank holds one whole parameter at a time. Raises ConfigError where a layer cannot be split so.
    """
    task.to(dtype)
    lay_out(task, grid)
    _materialise(task, device)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # in which all is drawn: with fp64 Lightning has set another
    try:
        fill(task.model, values(task.model))
    finally:
        torch.set_default_dtype(default)


def lay_out(task: Task, grid: DeviceMesh) -> None:
    """Share the parameters of ``task`` out over the grid, wherever they are.

    Layers are split over the tensor axis. What is left is fully sharded over the data axis, by block; embedding, head
    and the last norm are gathered together, since the loss reads them beside the model. Raises ConfigError where a
    layer cannot be split so.
    """
    blocks = [block for stack in task.model.stacks() for block in stack.blocks]
    if grid[TENSOR].size() > 1:
        for block in blocks:
            block.split_over(grid[TENSOR])
    if grid[DATA].size() > 1:
        for module in (*blocks, task):
            fully_shard(module, mesh=grid[DATA])


@torch.no_grad()
def fill(model: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Give each parameter this rank's part of its whole value."""
    role = roles(model)
    for name, value in values:
        parameter = model.get_parameter(name)
        local(parameter).copy_(cut(value, place_of(parameter, role[name].splits)))


@contextmanager
def root_gathered(task: nn.Module) -> Iterator[None]:
    """Within, ``task.model`` may be called without the task around it, as evaluation does."""
    if not isinstance(task, FSDPModule):
        yield
        return
    task.unshard()
    try:
        yield
    finally:
        task.reshard()


def _materialise(task: nn.Module, device: torch.device) -> None:
    """Give parameters and buffers memory on ``device``, buffers zeros; what was tied stays tied."""
    first: dict[int, str] = {}
    ties = {}
    for name, parameter in task.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            ties[name] = owner
    task.to_empty(device=device)
    for name, owner in ties.items():
        module, _, own = name.rpartition(".")
        task.get_submodule(module).register_parameter(own, task.get_parameter(owner))
    for buffer in task.buffers():
        buffer.zero_()
