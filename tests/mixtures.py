"""Mixtures of experts by either choice, and layers of them, for the tests of what they say, cost and keep."""

import pytest
import torch

from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.moe import MoE, MoEModule
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.ops.moe import Slots
from llmtrain.types import Seq, Visibility
from tests.tiny import noise, stream

D = 32
TOKEN = {
    "plain": MoE(),
    "scores": MoE(renormalise=False, top_k=3),
    "switch": MoE(n_experts=4, top_k=1, renormalise=False),
    "deepseek": MoE(scores="sigmoid", n_shared=1, scale=2.5, bias_rate=0.01, ratio=0.25),
}
EXPERT = {
    "experts_choose": MoE(choice="expert", renormalise=False, balance=0.0, n_shared=1),
    "experts_choose_by_sigmoid": MoE(
        choice="expert", scores="sigmoid", renormalise=False, balance=0.0, n_experts=3
    ),
}
token_choices = pytest.mark.parametrize("cfg", TOKEN.values(), ids=TOKEN.keys())
choices = pytest.mark.parametrize("cfg", [*TOKEN.values(), *EXPERT.values()], ids=[*TOKEN, *EXPERT])


def moe(cfg: MoE, *, bias: bool = True) -> MoEModule:
    """In float64, with biases that matter."""
    module = cfg.build(D, Visibility.BIDIRECTIONAL)
    initialise(module, n_layers=1, seed=0)
    module.double()
    if cfg.bias_rate and bias:
        module.bias.copy_(0.3 * noise(cfg.n_experts, seed=5))
    return module


def one_a_row() -> Seq:
    """Documents of different lengths, the last row padding alone."""
    return stream(((7,), (12,), (1,), ()), 12, Visibility.BIDIRECTIONAL)


def slots_of(n: int, e: int, k: int, *, dtype: torch.dtype = torch.float64, seed: int = 1) -> Slots:
    """The same experts again and again, so that some get many tokens and others none."""
    expert = (noise(n, e, seed=seed) + torch.arange(e).ge(e - 1) * -9.0).topk(k, -1).indices
    token = torch.arange(n).repeat_interleave(k)
    return Slots(token, expert.flatten(), noise(n * k, seed=2).to(dtype))


def clm_of(cfg: MoE) -> ModelConfig:
    layer = Layer(mixer=Attention(head_dim=8), mlp=cfg)
    return ModelConfig(n_layers=2, d_model=D, layers=(layer,))
