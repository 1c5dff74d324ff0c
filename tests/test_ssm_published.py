"""Our mixer is the published one: with the weights carried over, its outputs are those of ``transformers``."""

import pytest
import torch
from torch import Tensor

from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.ssm import SSM, SSMModule
from llmtrain.nn.model import Layer, ModelConfig, Trunk
from llmtrain.objectives.causal import CausalLM
from llmtrain.types import Visibility
from tests.tiny import VOCAB, model_of, noise, stream

transformers = pytest.importorskip("transformers")
CLM = CausalLM()


def config_of(ssm: SSM) -> ModelConfig:
    return ModelConfig(n_layers=2, d_model=32, layers=(Layer(mixer=ssm),), norm_eps=ssm.norm_eps)


def randomised(mixer: SSMModule) -> None:
    for i, p in enumerate(p for p in mixer.parameters() if p.ndim == 1):
        p.data += 0.2 * noise(*p.shape, seed=i, dtype=torch.float32)


def published(mixer: SSMModule) -> dict[str, Tensor]:
    """Our parameters under the names that ``transformers`` gives them."""
    past = mixer.past
    return {
        "in_proj.weight": mixer.in_proj.weight,
        "conv1d.weight": past.conv_weight[:, None],
        "conv1d.bias": past.conv_bias,
        "dt_bias": past.dt_bias,
        "A_log": past.A_log,
        "D": mixer.D,
        "norm.weight": mixer.norm.weight,
        "out_proj.weight": mixer.out.weight,
    }


@pytest.mark.parametrize("ssm", [SSM(head_dim=16, d_state=8), SSM(head_dim=8, d_state=4, groups=4, conv=3)])
def test_logits_and_gradients_equal_those_of_mamba2(ssm):
    model = model_of(CLM, config_of(ssm))
    for block in model.trunk.blocks:
        randomised(block.mixer)
    other = transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=VOCAB.size,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=64 // ssm.head_dim,
            head_dim=ssm.head_dim,
            state_size=ssm.d_state,
            n_groups=ssm.groups,
            conv_kernel=ssm.conv,
            chunk_size=16,
            layer_norm_epsilon=ssm.norm_eps,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
    ).eval()
    weights = {
        "backbone.embeddings.weight": model.embed.weight,
        "backbone.norm_f.weight": model.trunk.norm.weight,
    }
    weights["lm_head.weight"] = model.head.weight
    for i, block in enumerate(model.trunk.blocks):
        at = f"backbone.layers.{i}."
        weights[f"{at}norm.weight"] = block.before["mixer"].weight
        weights |= {f"{at}mixer.{name}": weight for name, weight in published(block.mixer).items()}
    other.load_state_dict(weights, strict=True)
    text = stream(((24,), (24,)), 24)
    ours, theirs = model.head(model(text).h), other(text.ids).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for logits in (ours, theirs):
        (logits * noise(*logits.shape, dtype=torch.float32)).sum().backward()
    for name, p in published(model.trunk.blocks[0].mixer).items():
        if p.is_leaf:
            expected = other.get_parameter(f"backbone.layers.0.mixer.{name}").grad
            torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["bamba", "granitemoehybrid"])
@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_the_mixer_is_that_of_the_published_hybrids(kind, groups):
    shape = {"hidden_size": 32, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
    ssm = SSM(head_dim=8, d_state=4, groups=groups)
    if kind == "bamba":
        from transformers.models.bamba.modeling_bamba import BambaMixer as Theirs

        cfg = transformers.BambaConfig(**shape, mamba_n_groups=groups, rms_norm_eps=ssm.norm_eps)
    else:
        from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
            GraniteMoeHybridMambaLayer as Theirs,
        )

        cfg = transformers.GraniteMoeHybridConfig(**shape, mamba_n_groups=groups, rms_norm_eps=ssm.norm_eps)
    trunk = Trunk(config_of(ssm), Visibility.CAUSAL)
    initialise(trunk, n_layers=2, seed=0)
    mixer = trunk.blocks[0].mixer
    randomised(mixer)
    other = Theirs(cfg, layer_idx=0).eval()
    other.load_state_dict(published(mixer), strict=True)
    x = noise(2, 24, 32, dtype=torch.float32)
    torch.testing.assert_close(mixer(x, stream(((24,), (24,)), 24)), other(x), rtol=0, atol=1e-5)
