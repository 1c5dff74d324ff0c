"""The size of a model is counted without building it, and a width is the one that comes nearest to a size."""

import dataclasses
import math

import pytest

from llmtrain.accounting import meta_model, size, size_of, solve_width
from llmtrain.errors import ConfigError
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.mlps.width import d_ff
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.objectives.causal import CausalLM
from tests.tiny import DENSE, VOCAB, model_of

architectures = pytest.mark.parametrize("cfg", DENSE.values(), ids=DENSE.keys())
CLM = CausalLM()


@architectures
def test_the_meta_device_counts_what_is_there(cfg):
    model = model_of(CLM, cfg)
    counted = size(cfg, CLM, VOCAB.size)
    assert counted == size_of(model)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.total == counted.embedding + counted.non_embedding
    assert counted.active == counted.total
    assert counted.head == (0 if cfg.tie_embeddings else VOCAB.size * 32)
    assert all(p.is_meta for p in meta_model(cfg, CLM, VOCAB.size).parameters())


def test_the_size_of_a_small_model_by_hand():
    cfg = ModelConfig(
        n_layers=3, d_model=16, layers=(Layer(mixer=Attention(head_dim=4, kv_group=2), mlp=SwiGLU()),)
    )
    attention = 16 * (16 + 8 + 8) + 16 * 16 + 2 * 4  # q, k, v; out; the norms of queries and keys
    mlp = 3 * 16 * 48  # 8/3 x 16 = 42.7, rounded up to a multiple of 8
    block = attention + mlp + 2 * 16
    found = size(cfg, CLM, 100)
    assert found.embedding == 1600
    assert found.total == 1600 + 3 * block + 16


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("head_dim", "step", "n"), [(8, 8, 6e3), (8, 8, 1e5), (8, 32, 2.5e6), (24, 8, 2.5e6)]
)
def test_the_width_that_is_solved_for_is_the_nearest(n, step, head_dim, tie):
    layer = Layer(mixer=Attention(head_dim=head_dim), mlp=GELU())
    cfg = ModelConfig(n_layers=4, layers=(layer,), tie_embeddings=tie)

    def off(width: int) -> float:
        found = size(ModelConfig(**{**vars(cfg), "d_model": width}), CLM, 300)
        return abs(found.non_embedding + (found.embedding if tie else 0) - n)

    width = solve_width(cfg, CLM, 300, n=n, step=step)
    step = math.lcm(step, head_dim)
    assert width % step == 0 and width >= step
    assert off(width) <= off(width + step)
    assert width == step or off(width) <= off(width - step)


def test_a_size_that_no_width_comes_near_is_refused_with_the_nearest():
    cfg = ModelConfig(n_layers=4, layers=(Layer(mixer=Attention(head_dim=64), mlp=SwiGLU()),))
    least, next_one = (
        size(dataclasses.replace(cfg, d_model=d), CLM, 8192).total for d in (64, 128)
    )  # tied: the table is the head
    says = rf"n=300,000 .* steps of 64, nearest: {least:,} \(d_model=64\); .*smaller head_dim"
    with pytest.raises(ConfigError, match=says):
        solve_width(cfg, CLM, 8192, n=300e3, step=8)
    between = (least + next_one) / 2
    with pytest.raises(ConfigError, match=rf"{least:,} \(d_model=64\) and {next_one:,} \(d_model=128\)"):
        solve_width(cfg, CLM, 8192, n=between, step=8)
    assert solve_width(cfg, CLM, 8192, n=1.1 * least, step=8) == 64


def test_layers_that_no_width_can_have_say_so_in_their_own_words():
    layers = (Layer(mixer=Attention(head_dim=8)), Layer(mixer=Attention(head_dim=2 * 4099)))
    with pytest.raises(ValueError, match="is no multiple of head_dim=8198"):
        solve_width(ModelConfig(n_layers=2, layers=layers), CLM, 300, n=1e6, step=8)


def test_inner_widths_are_the_ratio_rounded_up():
    assert [d_ff(d, 8 / 3, 8) for d in (16, 24, 96, 384)] == [48, 64, 256, 1024]
    assert [d_ff(d, 4.0, 8) for d in (2, 16, 384)] == [8, 64, 1536]
    assert d_ff(384, 2.6667, 8) == 1024  # a rounded ratio means the width that it was rounded from
