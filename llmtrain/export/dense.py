"""Llama and its kin: Transformers with a gated MLP, causal or bidirectional, with or without normalised queries."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from llmtrain.export.base import (
    Family,
    Rule,
    Use,
    expect,
    layers_of,
    one_of,
    parts,
    pattern,
    refuse,
    rope_base,
    width_fields,
)
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.mlps.width import d_ff
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.types import Visibility

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
GATES = {theirs: ours for ours, theirs in ACTIVATIONS.items()}


class Llama(Family):
    """Llama 2 (2023) and Qwen3 (2025), which add to it normalised queries and keys, or a window (Mistral 2023).

    ``is_causal=False`` is transformers' own switch that makes any of them bidirectional.
    """

    def __init__(self, model_type: str, name: str):
        self.model_type, self.name = model_type, name

    def architecture(self, use: Use) -> str:
        return self.name + ("ForCausalLM" if use.tokens else "Model")

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        plain(cfg, self.model_type)
        out = attention_settings(cfg, self.model_type) | mlp_settings(cfg, self.model_type)
        out |= self._window(cfg, use)
        if use.visibility is Visibility.BIDIRECTIONAL:
            out["is_causal"] = False
        return out

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        expect(theirs, attention_bias=False, mlp_bias=False, hidden_act=tuple(GATES))
        causal = theirs.get("is_causal") is not False
        windows = self._windows(theirs, causal=causal)
        mixer = read_attention(theirs, qk_norm=self.model_type == "qwen3")
        mlp = read_mlp(theirs)
        layers = [Layer(mixer=attention(mixer, window=window), mlp=mlp) for window in windows]
        use = Use(Visibility.CAUSAL if causal else Visibility.BIDIRECTIONAL, tokens=has_head(theirs))
        return read_trunk(theirs, layers), use

    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        yield from ends(cfg, self.base)
        for i, layer in enumerate(layers_of(cfg)):
            assert isinstance(layer.mlp, SwiGLU)
            yield from attention_rules(cfg, i, f"{self.base}layers.{i}")
            yield from mlp_rules(cfg, layer.mlp, f"trunk.blocks.{i}.mlp", f"{self.base}layers.{i}.mlp")

    def _window(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        windows = [mixer.window for mixer in attentions(cfg)]
        limited = [width for width in windows if width is not None]
        if self.model_type == "llama":
            return {}
        if not limited:
            return {"use_sliding_window": False}
        wide = {"sliding_window": reach(one_of(limited, "mixer.window", self.model_type), use.visibility)}
        if self.model_type == "mistral":
            one_of(windows, "mixer.window", self.model_type)
            return wide
        kinds = ["full_attention" if width is None else "sliding_attention" for width in windows]
        return wide | {"use_sliding_window": True, "layer_types": kinds}

    def _windows(self, theirs: Mapping[str, Any], *, causal: bool) -> list[int | None]:
        n, width = theirs["num_hidden_layers"], theirs.get("sliding_window")
        if width is not None and not causal:
            width += 1  # see reach
        if self.model_type == "llama":
            return [None] * n
        if self.model_type == "mistral":
            return [width] * n
        if not theirs.get("use_sliding_window"):
            return [None] * n
        return [width if kind == "sliding_attention" else None for kind in theirs["layer_types"]]


class EuroBert(Llama):
    """EuroBERT (2025): Llama without the causal mask."""

    opens = "AutoModelForMaskedLM"

    def __init__(self) -> None:
        super().__init__("eurobert", "EuroBert")

    def architecture(self, use: Use) -> str:
        return "EuroBertForMaskedLM" if use.tokens else "EuroBertModel"

    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        from llmtrain.types import MASK

        plain(cfg, self.model_type)
        own = {"mask_token_id": MASK}
        return attention_settings(cfg, self.model_type) | mlp_settings(cfg, self.model_type) | own

    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        expect(theirs, attention_bias=False, mlp_bias=False, hidden_act=tuple(GATES))
        layer = Layer(mixer=attention(read_attention(theirs, qk_norm=False)), mlp=read_mlp(theirs))
        use = Use(Visibility.BIDIRECTIONAL, tokens=has_head(theirs))
        return read_trunk(theirs, [layer] * theirs["num_hidden_layers"]), use


def has_head(theirs: Mapping[str, Any]) -> bool:
    return not any(name.endswith("Model") for name in theirs.get("architectures") or ())


def reach(window: int, visibility: Visibility) -> int:
    """Their causal window is the first distance that is not seen, as ours; their bidirectional one the last that is."""
    return window - (visibility is Visibility.BIDIRECTIONAL)


def plain(cfg: ModelConfig, family: str) -> None:
    """Refuse what no kin of Llama has."""
    if cfg.norm != "pre":
        raise refuse(
            "model.norm", cfg.norm, family, why="which normalises before each part alone", way_out="norm=pre"
        )
    if cfg.embed_scale:
        raise refuse(
            "model.embed_scale",
            True,
            family,
            why="which does not scale embeddings",
            way_out="embed_scale=false",
        )


def attentions(cfg: ModelConfig) -> list[Attention]:
    """The mixer of every layer that attends."""
    return [layer.mixer for layer in layers_of(cfg) if isinstance(layer.mixer, Attention)]


def attention_settings(cfg: ModelConfig, family: str) -> dict[str, Any]:
    """What all attention layers and norms share, and the ends of the trunk."""
    n_layers, d_model = cfg.shape
    mixers = attentions(cfg)

    def of_all(name: str) -> Any:
        return one_of((getattr(mixer, name) for mixer in mixers), f"mixer.{name}", family)

    heads = one_of((mixer.n_heads(d_model) for mixer in mixers), "mixer.expand", family)
    if of_all("qk_norm"):
        one_of([cfg.norm_eps, of_all("norm_eps")], "norm_eps", family)
    return {
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // of_all("kv_group"),
        "head_dim": of_all("head_dim"),
        "rope_parameters": {"rope_type": "default", "rope_theta": of_all("rope_base")},
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


def mlp_settings(cfg: ModelConfig, family: str) -> dict[str, Any]:
    mlps = [layer.mlp for layer in layers_of(cfg) if isinstance(layer.mlp, SwiGLU)]
    width = one_of((d_ff(cfg.shape[1], mlp.ratio, mlp.multiple_of) for mlp in mlps), "mlp.ratio", family)
    gate = one_of((mlp.gate for mlp in mlps), "mlp.gate", family)
    return {"intermediate_size": width, "hidden_act": ACTIVATIONS[gate]}


def read_attention(theirs: Mapping[str, Any], *, qk_norm: bool) -> dict[str, Any]:
    """Fields of ``Attention``."""
    d_model, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    head_dim = theirs.get("head_dim") or d_model // heads
    return {
        "head_dim": head_dim,
        "kv_group": heads // (theirs.get("num_key_value_heads") or heads),
        "expand": heads * head_dim / d_model,
        "qk_norm": qk_norm,
        "rope_base": rope_base(theirs),
        "norm_eps": theirs["rms_norm_eps"],
    }


def attention(fields: Mapping[str, Any], **more: Any) -> Attention:
    return Attention(**fields, **more)


def read_mlp(theirs: Mapping[str, Any], *, act: str = "hidden_act") -> SwiGLU:
    width = width_fields(theirs["intermediate_size"], theirs["hidden_size"])
    return SwiGLU(**width, gate=GATES[theirs[act]])  # type: ignore[arg-type]


def read_trunk(theirs: Mapping[str, Any], layers: list[Layer], **more: Any) -> ModelConfig:
    return ModelConfig(
        layers=pattern(layers),
        n_layers=len(layers),
        d_model=theirs["hidden_size"],
        norm_eps=theirs["rms_norm_eps"],
        tie_embeddings=bool(theirs.get("tie_word_embeddings")),
        **more,
    )


def ends(cfg: ModelConfig, base: str) -> Iterator[Rule]:
    """Embedding, last norm, and a head of its own."""
    yield Rule("embed.weight", (f"{base}embed_tokens.weight",))
    yield Rule("trunk.norm.weight", (f"{base}norm.weight",))
    if not cfg.tie_embeddings:
        yield Rule("head.weight", ("lm_head.weight",))


def attention_rules(cfg: ModelConfig, i: int, theirs: str) -> Iterator[Rule]:
    """Of attention and the norms before it and before the MLP."""
    mixer, ours = cfg.layer(i).mixer, f"trunk.blocks.{i}"
    assert isinstance(mixer, Attention)
    yield Rule(f"{ours}.before.mixer.weight", (f"{theirs}.input_layernorm.weight",))
    yield Rule(f"{ours}.before.mlp.weight", (f"{theirs}.post_attention_layernorm.weight",))
    yield from projections(cfg, mixer, f"{ours}.mixer", f"{theirs}.self_attn")
    if mixer.qk_norm:
        yield Rule(f"{ours}.mixer.q_norm.weight", (f"{theirs}.self_attn.q_norm.weight",))
        yield Rule(f"{ours}.mixer.k_norm.weight", (f"{theirs}.self_attn.k_norm.weight",))


def projections(cfg: ModelConfig, mixer: Attention, ours: str, theirs: str) -> Iterator[Rule]:
    heads = mixer.n_heads(cfg.shape[1])
    sizes = [n * mixer.head_dim for n in (heads, heads // mixer.kv_group, heads // mixer.kv_group)]
    yield parts(f"{ours}.qkv.weight", [f"{theirs}.{name}_proj.weight" for name in "qkv"], sizes)
    yield Rule(f"{ours}.out.weight", (f"{theirs}.o_proj.weight",))


def mlp_rules(cfg: ModelConfig, mlp: SwiGLU, ours: str, theirs: str) -> Iterator[Rule]:
    width = d_ff(cfg.shape[1], mlp.ratio, mlp.multiple_of)
    yield parts(
        f"{ours}.gate_up.weight", [f"{theirs}.{n}_proj.weight" for n in ("gate", "up")], [width, width]
    )
    yield Rule(f"{ours}.down.weight", (f"{theirs}.down_proj.weight",))
