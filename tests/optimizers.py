"""A net with a parameter of every role, gradients by address, and the optimisers that train it."""

import pytest
import torch
from torch import Tensor, nn

from llmtrain.nn.roles import Role
from llmtrain.optim.adamw import AdamW
from llmtrain.optim.base import Optim
from llmtrain.optim.composite import CompositeOptimizer
from llmtrain.optim.muon import Muon
from llmtrain.optim.schedules import Constant, Cosine

HORIZON = 100
STEADY = Constant(warmup=0)
OPTIMS = [AdamW(lr=0.01, ema=0.9), Muon(lr=0.02, adamw_lr=0.01, ema=0.9)]

both = pytest.mark.parametrize("optim", OPTIMS, ids=lambda o: type(o).__name__)


class Net(nn.Module):
    """A parameter of every role: a table, a fused matrix, a plain one, a stack of experts, a gain, a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.qkv = nn.Linear(6, 10, bias=False)
        self.out = nn.Linear(6, 6, bias=False)
        self.norm = nn.RMSNorm(6)
        self.experts = nn.Parameter(torch.empty(3, 8, 6))
        self.head = nn.Linear(6, 9, bias=False)
        self.qkv.roles = {"weight": Role("matrix", (6, 2, 2))}
        self.head.roles = {"weight": Role("head")}
        self.roles = {"experts": Role("matrix")}
        for i, p in enumerate(self.parameters()):
            p.data = noise(p.shape, seed, i)


def noise(shape: torch.Size | tuple[int, ...], *address: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(hash(address) % 2**31)
    return torch.randn(shape, generator=generator, dtype=dtype)


def give_gradients(model: nn.Module, step: int) -> None:
    for i, p in enumerate(model.parameters()):
        p.grad = noise(p.shape, 1, step, i).to(p.dtype)


def train(model: nn.Module, optimizer: CompositeOptimizer, steps: range) -> None:
    for step in steps:
        give_gradients(model, step)
        optimizer.step()


def build(optim: Optim, model: nn.Module) -> CompositeOptimizer:
    return optim.build(model, Cosine(warmup=3), HORIZON)


def everything(model: nn.Module, optimizer: CompositeOptimizer) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in (model.state_dict() | optimizer.tensors()).items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
