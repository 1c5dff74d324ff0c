"""Our dense model is Qwen3's: with the weights carried over, logits equal those of ``transformers``."""

import pytest
import torch

from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, Model, ModelConfig
from llmtrain.objectives.causal import CausalLM
from llmtrain.types import Visibility
from tests.tiny import VOCAB, model_of, noise, stream

transformers = pytest.importorskip("transformers")


def ours(*, tie: bool, kv_group: int = 2, rope_base: float = 1e4, window: int | None = None) -> Model:
    mixer = Attention(
        head_dim=16, kv_group=kv_group, rope_base=rope_base, window=window
    )  # 4 heads of 16 at 64
    cfg = ModelConfig(n_layers=3, d_model=64, layers=(Layer(mixer=mixer, mlp=SwiGLU()),), tie_embeddings=tie)
    model = model_of(CausalLM(), cfg)
    for i, p in enumerate(model.parameters()):  # gains that differ, so that none can be in another's place
        if p.ndim == 1:
            p.data = 1 + 0.2 * noise(*p.shape, seed=i, dtype=torch.float32)
    return model


def theirs(model: Model):
    """Qwen3ForCausalLM with our weights: fused matrices are split, everything else only renamed."""
    mixer = model.trunk.blocks[0].mixer
    cfg = transformers.Qwen3Config(
        vocab_size=VOCAB.size,
        hidden_size=64,
        intermediate_size=model.trunk.blocks[0].mlp.down.in_features,
        num_hidden_layers=3,
        num_attention_heads=mixer.n_heads,
        num_key_value_heads=mixer.n_kv_heads,
        head_dim=mixer.cfg.head_dim,
        rms_norm_eps=mixer.cfg.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": mixer.cfg.rope_base},
        tie_word_embeddings=model.head.weight is model.embed.weight,
        max_position_embeddings=256,
        use_sliding_window=mixer.cfg.window is not None,
        sliding_window=mixer.cfg.window,
        max_window_layers=0,
        attn_implementation="eager",
    )
    weights = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.trunk.norm.weight}
    weights["lm_head.weight"] = model.head.weight
    for i, block in enumerate(model.trunk.blocks):
        q, k, v = block.mixer.qkv.weight.split(block.mixer.splits)
        gate, up = block.mlp.gate_up.weight.chunk(2)
        parts = {
            "input_layernorm": block.before["mixer"].weight,
            "post_attention_layernorm": block.before["mlp"].weight,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.mixer.out.weight,
            "self_attn.q_norm": block.mixer.q_norm.weight,
            "self_attn.k_norm": block.mixer.k_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp.down.weight,
        }
        weights |= {f"model.layers.{i}.{name}.weight": weight for name, weight in parts.items()}
    other = transformers.Qwen3ForCausalLM(cfg).eval()
    other.load_state_dict(weights, strict=True)
    return other


@pytest.mark.parametrize(
    "shape",
    [
        {"tie": True},
        {"tie": False, "rope_base": 1e6},
        {"tie": True, "kv_group": 1},
        {"tie": False, "kv_group": 4},
        {"tie": True, "window": 5},
    ],
    ids=str,
)
def test_logits_equal_those_of_qwen3(shape):
    model = ours(**shape)
    other = theirs(model)
    text = stream(((24,), (24,)), 24, Visibility.CAUSAL)
    with torch.no_grad():
        mine, logits = model.head(model(text).h), other(text.ids).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(mine, logits, rtol=0, atol=1e-5)


def test_losses_and_their_gradients_equal_those_of_qwen3():
    model = ours(tie=True)
    other = theirs(model)
    text = stream(((24,), (24,)), 24, Visibility.CAUSAL)
    targets = text.ids.roll(-1, 1)
    logits = other(text.ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    from llmtrain.objectives.causal import CausalBatch

    CausalLM().loss(model, CausalBatch(text, targets, torch.zeros(2, dtype=torch.long))).loss.backward()
    for mine, name in (
        (model.embed.weight, "embed_tokens"),
        (model.trunk.blocks[1].mlp.down.weight, "layers.1.mlp.down_proj"),
    ):
        expected = other.model.get_submodule(name).weight.grad
        torch.testing.assert_close(mine.grad, expected, rtol=1e-4, atol=1e-6)
