"""T5Gemma: an encoder-decoder with norms before and after each part."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.export.base import Family, Rule, Use, centred, copies, expect, layers_of, one_of, parts, refuse
from llmtrain.export.dense import (
    GATES,
    attention,
    attention_settings,
    attentions,
    mlp_rules,
    mlp_settings,
    projections,
    reach,
    read_attention,
    read_mlp,
    read_trunk,
)
from llmtrain.nn.mixers.attention import Attention, n_heads
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.types import BOS, Visibility

_USE = Use(Visibility.CAUSAL, encoder=True)
_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


class T5Gemma(Family):
    """T5Gemma (2025): Gemma 2's layers in both stacks, cross-attention without positions.

    Softcaps are refused. It holds the embedding twice; where the two are equal, they are read as one.
    """

    model_type = "t5gemma"
    opens = "AutoModelForSeq2SeqLM"

    def architecture(self, use: Use) -> str:
        return "T5GemmaForConditionalGeneration"

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        self._check(cfg)
        sizes = attention_settings(cfg, self.model_type) | mlp_settings(cfg, self.model_type)
        sizes["hidden_activation"] = sizes.pop("hidden_act")
        windows = [mixer.window for mixer in attentions(cfg)]
        stack = sizes | {
            "query_pre_attn_scalar": sizes["head_dim"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
        }
        encoder = dict(stack)
        if any(windows):
            stack["sliding_window"] = one_of([w for w in windows if w], "mixer.window", self.model_type)
            encoder["sliding_window"] = reach(stack["sliding_window"], Visibility.BIDIRECTIONAL)
        return {
            "encoder": encoder,
            "decoder": stack,
            "tie_word_embeddings": cfg.tie_embeddings,
            "decoder_start_token_id": BOS,
            "is_encoder_decoder": True,
        }

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        both = [dict(theirs[key]) for key in ("encoder", "decoder")]
        for one in both:
            expect(
                one,
                attn_logit_softcapping=None,
                final_logit_softcapping=None,
                attention_bias=False,
                hidden_activation=tuple(GATES),
                query_pre_attn_scalar=one["head_dim"],
            )
            if one["layer_types"].count("sliding_attention") and one is both[0]:
                one["sliding_window"] += 1  # see reach
        decoder = both[1]
        mixers = [self._mixers(one) for one in both]
        if mixers[0] != mixers[1] or any(
            both[0][k] != decoder[k] for k in ("intermediate_size", "hidden_size")
        ):
            raise ConfigError(
                "encoder and decoder differ in size, and here one config makes both: choose another model"
            )
        mlp = read_mlp(decoder, act="hidden_activation")
        heads = mixers[1][0]
        tied = bool(theirs.get("tie_word_embeddings"))
        cfg = read_trunk(
            decoder | {"tie_word_embeddings": tied},
            [Layer(mixer=mixer, mlp=mlp) for mixer in mixers[1]],
            norm="sandwich",
            embed_scale=True,
            share_embeddings=torch.equal(*(state[name] for name in _TABLES)),
            cross=CrossAttention(
                head_dim=heads.head_dim, kv_group=heads.kv_group, expand=heads.expand, qk_norm=False
            ),
        )
        return cfg, _USE

    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        yield from self._tables(cfg)
        for ours, theirs in (("encoder", "model.encoder"), ("trunk", "model.decoder")):
            yield centred(f"{ours}.norm.weight", f"{theirs}.norm.weight")
            for i, layer in enumerate(layers_of(cfg)):
                yield from self._block(
                    cfg, layer, f"{ours}.blocks.{i}", f"{theirs}.layers.{i}", ours == "trunk"
                )

    def _mixers(self, one: Mapping[str, Any]) -> list[Attention]:
        fields = read_attention(one, qk_norm=False)
        width = one["sliding_window"]
        return [
            attention(fields, window=width if kind == "sliding_attention" else None)
            for kind in one["layer_types"]
        ]

    def _tables(self, cfg: ModelConfig) -> Iterator[Rule]:
        if cfg.share_embeddings:
            yield copies("embed.weight", _TABLES)
        else:
            yield Rule("source_embed.weight", _TABLES[:1])
            yield Rule("embed.weight", _TABLES[1:])
        if not cfg.tie_embeddings:
            yield Rule("head.weight", ("lm_head.out_proj.weight",))

    def _block(self, cfg: ModelConfig, layer: Layer, ours: str, theirs: str, cross: bool) -> Iterator[Rule]:
        assert isinstance(layer.mixer, Attention) and isinstance(layer.mlp, SwiGLU)
        names = {"mixer": "self_attn", "mlp": "feedforward"} | ({"cross": "cross_attn"} if cross else {})
        for part, name in names.items():
            yield centred(f"{ours}.before.{part}.weight", f"{theirs}.pre_{name}_layernorm.weight")
            yield centred(f"{ours}.after.{part}.weight", f"{theirs}.post_{name}_layernorm.weight")
        yield from projections(cfg, layer.mixer, f"{ours}.mixer", f"{theirs}.self_attn")
        yield from mlp_rules(cfg, layer.mlp, f"{ours}.mlp", f"{theirs}.mlp")
        if cross:
            n, own = cfg.shape[1], cfg.cross
            d_kv = n_heads(n, own.head_dim, own.kv_group, own.expand) * own.head_dim // own.kv_group
            yield Rule(f"{ours}.cross.q.weight", (f"{theirs}.cross_attn.q_proj.weight",))
            yield parts(
                f"{ours}.cross.kv.weight",
                [f"{theirs}.cross_attn.{k}_proj.weight" for k in "kv"],
                [d_kv, d_kv],
            )
            yield Rule(f"{ours}.cross.out.weight", (f"{theirs}.cross_attn.o_proj.weight",))

    def _check(self, cfg: ModelConfig) -> None:
        if cfg.norm != "sandwich":
            raise refuse(
                "model.norm",
                cfg.norm,
                self.model_type,
                why="which normalises after each part too",
                way_out="norm=sandwich",
            )
        if not cfg.embed_scale:
            raise refuse(
                "model.embed_scale",
                False,
                self.model_type,
                why="which scales embeddings",
                way_out="embed_scale=true",
            )
        if cfg.cross.qk_norm:
            raise refuse(
                "model.cross.qk_norm",
                True,
                self.model_type,
                why="which has none",
                way_out="model.cross.qk_norm=false",
            )
        for mixer in attentions(cfg):
            for name in ("head_dim", "kv_group", "expand"):
                one_of(
                    [getattr(mixer, name), getattr(cfg.cross, name)],
                    f"{name} (mixer, cross)",
                    self.model_type,
                )
