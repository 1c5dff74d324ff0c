"""Mamba-2 alone, and Granite 4's hybrids of it with attention and experts."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.export.base import Family, Rule, Use, expect, layers_of, one_of, refuse, width_fields
from llmtrain.export.dense import (
    attention,
    attention_settings,
    attentions,
    ends,
    has_head,
    mlp_settings,
    plain,
    projections,
    read_attention,
    read_trunk,
)
from llmtrain.export.moe import expect_silu, expert_rules, read_moe, shared_moe
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.ssm import SSM
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.mlps.width import d_ff
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.types import Visibility

_NO_LIMIT = ((0.0, float("inf")), [0.0, float("inf")], None)


class Mamba2(Family):
    """Mamba-2 (2024): nothing but mixers."""

    model_type = "mamba2"
    base = "backbone."

    def architecture(self, use: Use) -> str:
        return "Mamba2ForCausalLM" if use.tokens else "Mamba2Model"

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        plain(cfg, self.model_type)
        ssm = shared_ssm(cfg, use, self.model_type)
        n_layers, d_model = cfg.shape
        return {
            "hidden_size": d_model,
            "num_hidden_layers": n_layers,
            "num_heads": ssm.n_heads(d_model),
            "head_dim": ssm.head_dim,
            "state_size": ssm.d_state,
            "expand": ssm.expand,
            "n_groups": ssm.groups,
            "conv_kernel": ssm.conv,
            "chunk_size": ssm.chunk,
            "layer_norm_epsilon": cfg.norm_eps,
            "time_step_min": ssm.dt_min,
            "time_step_max": ssm.dt_max,
            "tie_word_embeddings": cfg.tie_embeddings,
        }

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        expect(theirs, hidden_act="silu", use_bias=False, use_conv_bias=True, time_step_limit=_NO_LIMIT)
        ssm = SSM(
            d_state=theirs["state_size"],
            head_dim=theirs["head_dim"],
            expand=theirs["expand"],
            groups=theirs["n_groups"],
            conv=theirs["conv_kernel"],
            chunk=theirs["chunk_size"],
            dt_min=theirs["time_step_min"],
            dt_max=theirs["time_step_max"],
            norm_eps=theirs["layer_norm_epsilon"],
        )
        cfg = read_trunk(
            {**theirs, "rms_norm_eps": theirs["layer_norm_epsilon"]},
            [Layer(mixer=ssm)] * theirs["num_hidden_layers"],
        )
        return cfg, Use(Visibility.CAUSAL, tokens=has_head(theirs))

    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        yield Rule("embed.weight", (f"{self.base}embeddings.weight",))
        yield Rule("trunk.norm.weight", (f"{self.base}norm_f.weight",))
        if not cfg.tie_embeddings:
            yield Rule("head.weight", ("lm_head.weight",))
        for i in range(cfg.shape[0]):
            ours, theirs = f"trunk.blocks.{i}", f"{self.base}layers.{i}"
            yield Rule(f"{ours}.before.mixer.weight", (f"{theirs}.norm.weight",))
            yield from ssm_rules(f"{ours}.mixer", f"{theirs}.mixer")


class GraniteHybrid(Family):
    """Granite 4 (2025): Mamba-2 or attention in each layer, and a gated MLP, or experts with one beside them.

    Its four multipliers say what ours are: the attention's is 1 / sqrt(head_dim), the embedding's 1 or sqrt(d_model).
    """

    model_type = "granitemoehybrid"

    def architecture(self, use: Use) -> str:
        return "GraniteMoeHybridForCausalLM" if use.tokens else "GraniteMoeHybridModel"

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        if cfg.norm != "pre":
            plain(cfg, self.model_type)
        layers, (n_layers, d_model) = layers_of(cfg), cfg.shape
        out = {
            "hidden_size": d_model,
            "num_hidden_layers": n_layers,
            "rms_norm_eps": cfg.norm_eps,
            "tie_word_embeddings": cfg.tie_embeddings,
            "embedding_multiplier": d_model**0.5 if cfg.embed_scale else 1.0,
            "layer_types": [
                "linear_attention" if isinstance(x.mixer, SSM) else "full_attention" for x in layers
            ],
        }
        if use.visibility is Visibility.BIDIRECTIONAL:
            out["is_causal"] = False
        return out | self._attention(cfg) | self._mamba(cfg, use) | self._mlp(cfg)

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        d_model = theirs["hidden_size"]
        expect(
            theirs,
            hidden_act="silu",
            attention_bias=False,
            mamba_proj_bias=False,
            mamba_conv_bias=True,
            logits_scaling=1.0,
            residual_multiplier=1.0,
            embedding_multiplier=(1.0, d_model**0.5),
            time_step_limit=_NO_LIMIT,
        )
        fields = read_attention(theirs, qk_norm=False)
        expect(theirs, position_embedding_type="rope", attention_multiplier=fields["head_dim"] ** -0.5)
        causal = theirs.get("is_causal") is not False
        mixers: dict[str, Any] = {
            "full_attention": lambda: attention(fields),
            "linear_attention": lambda: self._read_ssm(theirs),
        }
        mlp = self._read_mlp(theirs)
        made = {kind: Layer(mixer=mixers[kind](), mlp=mlp) for kind in set(theirs["layer_types"])}
        layers = [made[kind] for kind in theirs["layer_types"]]
        scaled = theirs["embedding_multiplier"] != 1.0
        use = Use(Visibility.CAUSAL if causal else Visibility.BIDIRECTIONAL, tokens=has_head(theirs))
        return read_trunk(theirs, layers, embed_scale=scaled), use

    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        yield from ends(cfg, self.base)
        for i, layer in enumerate(layers_of(cfg)):
            ours, theirs = f"trunk.blocks.{i}", f"{self.base}layers.{i}"
            yield Rule(f"{ours}.before.mixer.weight", (f"{theirs}.input_layernorm.weight",))
            yield Rule(f"{ours}.before.mlp.weight", (f"{theirs}.post_attention_layernorm.weight",))
            if isinstance(layer.mixer, Attention):
                yield from projections(cfg, layer.mixer, f"{ours}.mixer", f"{theirs}.self_attn")
            else:
                yield from ssm_rules(f"{ours}.mixer", f"{theirs}.mamba")
            shared = f"{ours}.mlp"
            if isinstance(layer.mlp, MoE):
                yield from expert_rules(shared, f"{theirs}.block_sparse_moe", router="router")
                shared += ".shared"
            yield Rule(f"{shared}.gate_up.weight", (f"{theirs}.shared_mlp.input_linear.weight",))
            yield Rule(f"{shared}.down.weight", (f"{theirs}.shared_mlp.output_linear.weight",))

    def _attention(self, cfg: ModelConfig) -> dict[str, Any]:
        mixers = attentions(cfg)
        if not mixers:  # its cache cannot count positions without attention
            raise ConfigError(
                f"no layer has attention, and {self.model_type} does not run without: train with one such layer, or "
                "without MLPs, as mamba2"
            )
        for name, value in (("qk_norm", False), ("window", None)):
            if (
                found := one_of((getattr(m, name) for m in mixers), f"mixer.{name}", self.model_type)
            ) != value:
                raise refuse(
                    f"mixer.{name}",
                    found,
                    self.model_type,
                    why="which has none",
                    way_out=f"mixer.{name}={value}",
                )
        out = attention_settings(cfg, self.model_type)
        return out | {"position_embedding_type": "rope", "attention_multiplier": out["head_dim"] ** -0.5}

    def _mamba(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        if not any(isinstance(layer.mixer, SSM) for layer in layers_of(cfg)):
            d_model = cfg.shape[1]
            return {"mamba_expand": 1, "mamba_n_heads": 1, "mamba_d_head": d_model}
        ssm = shared_ssm(cfg, use, self.model_type)
        return {
            "mamba_n_heads": ssm.n_heads(cfg.shape[1]),
            "mamba_d_head": ssm.head_dim,
            "mamba_d_state": ssm.d_state,
            "mamba_expand": ssm.expand,
            "mamba_n_groups": ssm.groups,
            "mamba_d_conv": ssm.conv,
            "mamba_chunk_size": ssm.chunk,
        }

    def _mlp(self, cfg: ModelConfig) -> dict[str, Any]:
        layers, d_model = layers_of(cfg), cfg.shape[1]
        kind = one_of((type(layer.mlp).__name__ for layer in layers), "mlp", self.model_type)
        if kind == "SwiGLU":
            out = mlp_settings(cfg, self.model_type)
            expect_silu(out, self.model_type)
            return out | {"num_local_experts": 0, "shared_intermediate_size": out["intermediate_size"]}
        moe = shared_moe(cfg, self.model_type, shared=True)
        if not moe.n_shared:
            raise refuse(
                "mlp.n_shared",
                0,
                self.model_type,
                why="whose experts have a shared one",
                way_out="n_shared=1",
            )
        if not moe.renormalise:
            raise refuse(
                "mlp.renormalise",
                False,
                self.model_type,
                why="whose gates sum to 1",
                way_out="renormalise=true",
            )
        width = d_ff(d_model, moe.ratio, moe.multiple_of)
        return {
            "hidden_act": "silu",
            "intermediate_size": width,
            "shared_intermediate_size": moe.n_shared * width,
            "num_local_experts": moe.n_experts,
            "num_experts_per_tok": moe.top_k,
            "router_aux_loss_coef": moe.balance,
        }

    def _read_ssm(self, theirs: Mapping[str, Any]) -> SSM:
        return SSM(
            d_state=theirs["mamba_d_state"],
            head_dim=theirs["mamba_d_head"],
            expand=theirs["mamba_expand"],
            groups=theirs["mamba_n_groups"],
            conv=theirs["mamba_d_conv"],
            chunk=theirs["mamba_chunk_size"],
            norm_eps=theirs["rms_norm_eps"],
        )

    def _read_mlp(self, theirs: Mapping[str, Any]) -> SwiGLU | MoE:
        width, shared = theirs["intermediate_size"], theirs["shared_intermediate_size"]
        if not theirs["num_local_experts"]:
            return SwiGLU(**width_fields(shared, theirs["hidden_size"]))
        if shared % width or not shared:
            raise ConfigError(
                f"shared_intermediate_size={shared} is no multiple of intermediate_size={width}, and shared experts "
                "are as wide as the others here: choose another model"
            )
        moe = read_moe(theirs, theirs["num_local_experts"], width, True)
        return dataclasses.replace(moe, n_shared=shared // width)


def shared_ssm(cfg: ModelConfig, use: Use, family: str) -> SSM:
    """The one config of all Mamba layers."""
    if use.visibility is not Visibility.CAUSAL:
        raise ConfigError(
            f"a bidirectional SSM cannot be exported to {family}, which has no reversed branch: train it "
            "causally"
        )
    ssm = one_of((x.mixer for x in layers_of(cfg) if isinstance(x.mixer, SSM)), "mixer", family)
    one_of([cfg.norm_eps, ssm.norm_eps], "norm_eps", family)
    return ssm


def ssm_rules(ours: str, theirs: str) -> Iterator[Rule]:
    """All but the convolution's weight, which has an axis more there, is only renamed."""
    names = {
        "in_proj.weight": "in_proj.weight",
        "out.weight": "out_proj.weight",
        "norm.weight": "norm.weight",
        "D": "D",
    }
    names |= {f"past.{name}": name for name in ("A_log", "dt_bias")} | {"past.conv_bias": "conv1d.bias"}
    for mine, other in names.items():
        yield Rule(f"{ours}.{mine}", (f"{theirs}.{other}",))
    yield Rule(
        f"{ours}.past.conv_weight",
        (f"{theirs}.conv1d.weight",),
        lambda t: (t[:, None],),
        lambda ts: ts[0][:, 0],
    )
