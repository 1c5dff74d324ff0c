"""Of a mixture of experts, what is counted is what torch counts, and what a hand counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops, size
from llmtrain.nn.base import Extent
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops import backend
from llmtrain.ops.moe_sliced import sliced_experts, sliced_experts_backward
from llmtrain.types import Visibility
from tests.mixtures import EXPERT, D, clm_of, moe, slots_of, token_choices
from tests.tiny import VOCAB, batch_of, model_of, noise, stream


@pytest.mark.parametrize("kernel", ["sliced", "grouped"])
@token_choices
def test_flops_counter_is_what_torch_counts_of_a_row(cfg, kernel):
    objective, model = CausalLM(), model_of(CausalLM(), clm_of(cfg))
    expected = flops(clm_of(cfg), objective, 12, vocab_size=VOCAB.size).counter
    with (
        backend.force(attention="reference", experts=kernel),
        FlopCounterMode(display=False, custom_mapping=GROUPED) as counter,
    ):
        objective.loss(model, batch_of(objective, seq_len=12, rows=3)).loss.backward()
    assert counter.get_total_flops() == 3 * expected


def _grouped(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """Rows by groups of weights, or, in the gradient of weights, groups of rows: each row meets one matrix."""
    return 2 * a[0] * a[1] * b[-1]


GROUPED = {torch.ops.aten._grouped_mm: _grouped}


@pytest.mark.parametrize("cfg", EXPERT.values(), ids=EXPERT.keys())
def test_flops_of_experts_that_choose_are_those_of_their_capacity(cfg):
    module, seq = moe(cfg), stream(((11,),) * 3, 11, Visibility.BIDIRECTIONAL)
    expected = module.flops(Extent(11, Visibility.BIDIRECTIONAL)).counter
    with FlopCounterMode(display=False) as counter:
        module(noise(3, 11, D).requires_grad_(), seq).h.sum().backward()
    assert counter.get_total_flops() == 3 * 3 * expected


def test_the_opaque_operation_counts_what_its_products_are():
    slots = slots_of(20, 4, 2)
    x, gate_up, down = noise(20, 8), noise(4, 12, 8), noise(4, 8, 6)
    y, h = sliced_experts(x, gate_up, down, *slots)
    steps = (
        (sliced_experts, (x, gate_up, down, *slots)),
        (sliced_experts_backward, (y, x, gate_up, down, *slots, h)),
    )
    for op, args in steps:
        with FlopCounterMode(display=False) as outside:
            op(*args)
        with FlopCounterMode(display=False) as inside:
            op._init_fn(*args)
        assert outside.get_total_flops() == inside.get_total_flops() > 0


def test_flops_and_active_parameters_by_hand():
    cfg = MoE(n_experts=4, top_k=2, ratio=0.5, n_shared=1)
    one = 3 * D * (D // 2)  # weights of an expert
    active = 4 * D + (2 + 1) * one  # router, chosen and shared
    module = cfg.build(D, Visibility.CAUSAL)
    assert module.flops(Extent(10, Visibility.CAUSAL)).model == 2 * 10 * active
    model = ModelConfig(n_layers=3, d_model=D, layers=(Layer(mixer=Attention(head_dim=8), mlp=cfg),))
    found = size(model, CausalLM(), VOCAB.size)
    assert found.total - found.active == 3 * 2 * one
