"""Tensor parallelism: what a layer needs whose matrices are shared out over ranks that all see the same tokens."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from llmtrain.errors import ConfigError


def per_rank(n: int, mesh: DeviceMesh, what: str) -> int:
    """How many of ``n`` a rank gets. Raises ConfigError where they do not come out whole."""
    if n % mesh.size():
        raise ConfigError(
            f"trainer.tensor={mesh.size()} does not divide the {n} {what}: set trainer.tensor to one of "
            f"{[d for d in range(2, n + 1) if n % d == 0]}, or trainer=fsdp"
        )
    return n // mesh.size()


def split_first_axis(module: nn.Module, name: str, mesh: DeviceMesh) -> None:
    """Leave of the parameter, a stack of one an expert, this rank's share."""
    parameter = module.get_parameter(name)
    module.register_parameter(name, nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)])))


def spread_out(x: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """``x``, the same on every rank, where each goes on with a part of the work: the gradient is the sum of theirs."""
    return x if mesh is None else _Spread.apply(x, mesh)


def summed(x: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """The sum of every rank's ``x``, the same on all; so is its gradient, which each takes as its own."""
    return x if mesh is None else _Summed.apply(x, mesh)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.mesh), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        return _sum(x, mesh)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _sum(x: Tensor, mesh: DeviceMesh) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=mesh.get_group())
    return total
