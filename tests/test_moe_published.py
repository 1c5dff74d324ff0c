"""Our mixture of experts is the published ones: with their weights, its outputs are those of ``transformers``."""

import pytest
import torch
from torch import Tensor

from llmtrain.nn.mlps.moe import MoE, MoEModule
from tests.mixtures import D, moe
from tests.tiny import noise, stream


def _same(theirs, module: MoEModule, x: Tensor) -> None:
    h = module(x, stream(((x.shape[1],),) * len(x), x.shape[1])).h
    torch.testing.assert_close(h, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3_norm", "qwen3", "mixtral", "granite"])
@torch.no_grad()
def test_the_layer_is_that_of_transformers_with_the_weights_carried_over(kind):
    transformers = pytest.importorskip("transformers")
    cfg = MoE(ratio=0.5, renormalise=kind != "qwen3", n_shared=2 if kind == "granite" else 0)
    module = moe(cfg).float()
    x = noise(2, 12, D, dtype=torch.float32)
    shared = {"hidden_size": D, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    if kind.startswith("qwen3"):
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        theirs = Qwen3MoeSparseMoeBlock(
            transformers.Qwen3MoeConfig(
                **shared, num_experts=8, moe_intermediate_size=16, norm_topk_prob=cfg.renormalise
            )
        )
        router = theirs.gate
    elif kind == "mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        theirs = MixtralSparseMoeBlock(
            transformers.MixtralConfig(**shared, num_local_experts=8, intermediate_size=16)
        )
        router = theirs.gate
    else:
        from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
            GraniteMoeHybridMLP,
            GraniteMoeHybridMoE,
        )

        granite = transformers.GraniteMoeHybridConfig(
            **shared, num_local_experts=8, intermediate_size=16, shared_intermediate_size=32, mamba_n_heads=8
        )
        theirs, beside = GraniteMoeHybridMoE(granite), GraniteMoeHybridMLP(granite)
        router = theirs.router
        beside.input_linear.weight.copy_(module.shared.gate_up.weight)
        beside.output_linear.weight.copy_(module.shared.down.weight)
    router.weight.copy_(module.router.weight)
    theirs.experts.gate_up_proj.copy_(module.gate_up)
    theirs.experts.down_proj.copy_(module.down)
    _same(theirs(x) + (beside(x) if kind == "granite" else 0), module, x)
