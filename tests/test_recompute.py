"""Activation checkpointing changes what is kept, and no number."""

import pytest
import torch
from torch import Tensor

from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Task
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.denoising import Denoising
from tests.matrix import families
from tests.tiny import batch_of, model_of

SEEN = pytest.mark.parametrize("objective", [CausalLM(), Denoising()], ids=["clm", "denoising"])


def learn(objective: CausalLM | Denoising, cfg: ModelConfig, *, recompute: bool) -> tuple[list[Tensor], int]:
    """Loss, routing and gradients of a step; and the bytes that its backward pass had in hand."""
    task = Task(model_of(objective, cfg), objective)
    if recompute:
        task.model.recompute_blocks()
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x,
        lambda x: x,
    ):
        out = task(batch_of(objective))
    out.loss.backward()
    counted = [part for routing in out.routing for part in routing]
    return [out.loss, out.nats, *counted, *(p.grad for p in task.parameters())], sum(kept.values())


@SEEN
@families
def test_a_block_computed_anew_gives_the_same_bits_and_keeps_less(objective, cfg):
    plain, all_bytes = learn(objective, cfg, recompute=False)
    anew, fewer_bytes = learn(objective, cfg, recompute=True)
    assert len(plain) == len(anew) and all(torch.equal(a, b) for a, b in zip(plain, anew, strict=True))
    assert fewer_bytes < all_bytes / 2
