"""Ranks of a sharded run do what one process does, and agree on whether a step happens."""

import datetime
import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from llmtrain.nn.roles import Role, Scale
from llmtrain.optim.adamw import AdamW
from llmtrain.optim.base import Optim
from llmtrain.optim.muon import Muon
from llmtrain.optim.schedules import Constant
from tests.ranks import on_ranks

WORLD = 2
OPTIMS: list[Optim] = [AdamW(lr=0.01, ema=0.9), Muon(lr=0.02, adamw_lr=0.01, ema=0.9)]


class Net(nn.Module):
    """Rows that do and do not divide by the ranks, in a fused matrix, a stack of experts and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = {"qkv": Scale((1, 1, 1), 0.25, 0.25, 4.0, (4.0, 1.0, 4.0)), "gain": Scale(rate=0.5)}
        self.roles = {"qkv": Role("matrix", (4, 3, 2)), "experts": Role("matrix"), "gain": Role("vector")}
        for name, shape in {"qkv": (9, 6), "experts": (2, 4, 6), "gain": (5,)}.items():
            self.register_parameter(name, nn.Parameter(draw(shape, len(name))))


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sharded_equals_whole(optim: Optim) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    whole, sharded = Net(), Net()
    for name, p in list(sharded.named_parameters()):
        sharded.register_parameter(name, nn.Parameter(distribute_tensor(p.data, mesh, [Shard(0)])))
    one, other = optim.build(whole, Constant(warmup=2), 10), optim.build(sharded, Constant(warmup=2), 10)
    for step in range(5):
        for i, (p, q) in enumerate(zip(whole.parameters(), sharded.parameters(), strict=True)):
            p.grad = draw(tuple(p.shape), 100 * step + i)
            q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        one.step()
        other.step()
        assert other.last.grad_norm == pytest.approx(one.last.grad_norm, rel=1e-12)
    ours = dict(sharded.named_parameters()) | other.tensors()
    for name, expected in (dict(whole.named_parameters()) | one.tensors()).items():
        found = ours[name]
        assert isinstance(found, DTensor), name
        torch.testing.assert_close(found.full_tensor(), expected.detach(), rtol=0, atol=1e-12)


def one_bad_rank_stops_all(optim: Optim) -> None:
    model = Net()
    optimizer = optim.build(model, Constant(warmup=2), 10)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    if dist.get_rank() == 1:
        model.gain.grad[0] = torch.nan
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert optimizer.last.verdict.action == "stop"
    assert [math.isfinite(norm) for norm in optimizer.last.norms] == [True, False]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def work() -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    try:
        for optim in OPTIMS:
            sharded_equals_whole(optim)
            one_bad_rank_stops_all(optim)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_sharded_ranks_equal_one_and_stop_together() -> None:
    on_ranks(WORLD, work)
