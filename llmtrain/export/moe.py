"""Mixtures of experts in Transformers: Qwen3-MoE, and Mixtral where queries and keys are not normalised."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.export.base import Rule, Use, expect, layers_of, one_of, refuse, width_fields
from llmtrain.export.dense import (
    Llama,
    attention,
    attention_rules,
    attention_settings,
    attentions,
    ends,
    has_head,
    mlp_rules,
    mlp_settings,
    plain,
    reach,
    read_attention,
    read_mlp,
    read_trunk,
)
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.mlps.width import d_ff
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.types import Visibility


class Qwen3MoE(Llama):
    """Qwen3-MoE (2025): any layer may have a plain MLP; gates are renormalised or not."""

    def __init__(self) -> None:
        super().__init__("qwen3_moe", "Qwen3Moe")

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        plain(cfg, self.model_type)
        moe = shared_moe(cfg, self.model_type)
        layers = layers_of(cfg)
        dense = [i for i, layer in enumerate(layers) if isinstance(layer.mlp, SwiGLU)]
        mlp = mlp_settings(cfg, self.model_type) if dense else {"hidden_act": "silu", "intermediate_size": 8}
        expect_silu(mlp, self.model_type)
        window = one_of((mixer.window for mixer in attentions(cfg)), "mixer.window", self.model_type)
        out = attention_settings(cfg, self.model_type) | mlp
        out |= {
            "num_local_experts": moe.n_experts,
            "num_experts_per_tok": moe.top_k,
            "norm_topk_prob": moe.renormalise,
            "moe_intermediate_size": d_ff(cfg.shape[1], moe.ratio, moe.multiple_of),
            "router_aux_loss_coef": moe.balance,
            "mlp_only_layers": dense,
            "use_sliding_window": window is not None,
        }
        out |= {} if window is None else {"sliding_window": reach(window, use.visibility)}
        return out | ({} if use.visibility is Visibility.CAUSAL else {"is_causal": False})

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        expect(theirs, attention_bias=False, hidden_act="silu")
        causal = theirs.get("is_causal") is not False
        window = theirs["sliding_window"] if theirs.get("use_sliding_window") else None
        mixer = attention(
            read_attention(theirs, qk_norm=True), window=window if causal or window is None else window + 1
        )
        experts = read_moe(
            theirs, theirs["num_local_experts"], theirs["moe_intermediate_size"], theirs["norm_topk_prob"]
        )
        step, dense = theirs.get("decoder_sparse_step", 1), theirs.get("mlp_only_layers") or ()
        layers = [
            Layer(mixer=mixer, mlp=read_mlp(theirs) if i in dense or (i + 1) % step else experts)
            for i in range(theirs["num_hidden_layers"])
        ]
        use = Use(Visibility.CAUSAL if causal else Visibility.BIDIRECTIONAL, tokens=has_head(theirs))
        return read_trunk(theirs, layers), use

    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        yield from ends(cfg, self.base)
        for i, layer in enumerate(layers_of(cfg)):
            ours, theirs = f"trunk.blocks.{i}", f"{self.base}layers.{i}"
            yield from attention_rules(cfg, i, theirs)
            if isinstance(layer.mlp, SwiGLU):
                yield from mlp_rules(cfg, layer.mlp, f"{ours}.mlp", f"{theirs}.mlp")
            else:
                yield from expert_rules(f"{ours}.mlp", f"{theirs}.mlp", router="gate")


class Mixtral(Llama):
    """Mixtral (2024): experts in every layer, gates renormalised."""

    def __init__(self) -> None:
        super().__init__("mixtral", "Mixtral")

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        plain(cfg, self.model_type)
        moe = shared_moe(cfg, self.model_type)
        if not all(isinstance(layer.mlp, MoE) for layer in layers_of(cfg)):
            raise ConfigError(
                "some layers have no experts, but every layer of mixtral has: train with experts in all of them, or "
                "with qk_norm=true, as qwen3_moe, where any layer may have none"
            )
        if not moe.renormalise:
            raise refuse(
                "mlp.renormalise",
                False,
                self.model_type,
                why="whose gates sum to 1",
                way_out="renormalise=true",
            )
        window = one_of((mixer.window for mixer in attentions(cfg)), "mixer.window", self.model_type)
        out = attention_settings(cfg, self.model_type) | {
            "hidden_act": "silu",
            "intermediate_size": d_ff(cfg.shape[1], moe.ratio, moe.multiple_of),
            "num_local_experts": moe.n_experts,
            "num_experts_per_tok": moe.top_k,
            "router_aux_loss_coef": moe.balance,
            "sliding_window": None if window is None else reach(window, use.visibility),
        }
        return out | ({} if use.visibility is Visibility.CAUSAL else {"is_causal": False})

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        expect(theirs, hidden_act="silu", router_jitter_noise=0.0)
        causal = theirs.get("is_causal") is not False
        window = theirs.get("sliding_window")
        mixer = attention(
            read_attention(theirs, qk_norm=False), window=window if causal or window is None else window + 1
        )
        experts = read_moe(theirs, theirs["num_local_experts"], theirs["intermediate_size"], True)
        layers = [Layer(mixer=mixer, mlp=experts)] * theirs["num_hidden_layers"]
        use = Use(Visibility.CAUSAL if causal else Visibility.BIDIRECTIONAL, tokens=has_head(theirs))
        return read_trunk(theirs, layers), use

    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        yield from ends(cfg, self.base)
        for i in range(cfg.shape[0]):
            yield from attention_rules(cfg, i, f"{self.base}layers.{i}")
            yield from expert_rules(f"trunk.blocks.{i}.mlp", f"{self.base}layers.{i}.mlp", router="gate")


def shared_moe(cfg: ModelConfig, family: str, *, shared: bool = False) -> MoE:
    """The experts' config, which all layers that have experts share; ``shared`` allows experts for every token."""
    moe = one_of(
        (layer.mlp for layer in layers_of(cfg) if isinstance(layer.mlp, MoE)), "their experts", family
    )
    plainly = {"scores": "softmax", "choice": "token", "scale": 1.0, "bias_rate": 0.0}
    for name, value in (plainly if shared else plainly | {"n_shared": 0}).items():
        if getattr(moe, name) != value:
            raise refuse(
                f"mlp.{name}",
                getattr(moe, name),
                family,
                why=f"whose experts have {value}",
                way_out=f"{name}={value}",
            )
    return moe


def expect_silu(settings: Mapping[str, Any], family: str) -> None:
    if settings["hidden_act"] != "silu":
        raise refuse(
            "mlp.gate", settings["hidden_act"], family, why="since experts have silu", way_out="gate=silu"
        )


def read_moe(theirs: Mapping[str, Any], n_experts: int, width: int, renormalise: bool) -> MoE:
    return MoE(
        n_experts=n_experts,
        top_k=theirs["num_experts_per_tok"],
        renormalise=renormalise,
        balance=theirs.get("router_aux_loss_coef") or 0.0,
        **width_fields(width, theirs["hidden_size"]),
    )


def expert_rules(ours: str, theirs: str, *, router: str) -> Iterator[Rule]:
    """Stacks of experts lie in memory as ours do."""
    yield Rule(f"{ours}.router.weight", (f"{theirs}.{router}.weight",))
    yield Rule(f"{ours}.gate_up", (f"{theirs}.experts.gate_up_proj",))
    yield Rule(f"{ours}.down", (f"{theirs}.experts.down_proj",))
