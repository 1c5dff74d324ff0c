"""Which public architecture a model is, from its config and what it was trained for."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.export.base import Family, Public, Use, layers_of, rescaled
from llmtrain.export.dense import EuroBert, Llama
from llmtrain.export.mamba import GraniteHybrid, Mamba2
from llmtrain.export.moe import Mixtral, Qwen3MoE
from llmtrain.export.t5gemma import T5Gemma
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.ssm import SSM
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.types import Visibility

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Llama("llama", "Llama"),
        Llama("mistral", "Mistral"),
        Llama("qwen3", "Qwen3"),
        EuroBert(),
        Qwen3MoE(),
        Mixtral(),
        T5Gemma(),
        Mamba2(),
        GraniteHybrid(),
    )
}


def to_hf(cfg: ModelConfig, use: Use, state: Mapping[str, Tensor], *, seq_len: int | None = None) -> Public:
    """A model of ours, whose config and state dict these are, as one of theirs.

    ``seq_len`` is the length that it was trained on. Raises ConfigError where there is no equal, with the nearest
    choice that has one.
    """
    return family_of(cfg, use).give(cfg, use, rescaled(state, cfg.readout), seq_len=seq_len)


def from_hf(
    theirs: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[ModelConfig, Use, dict[str, Tensor]]:
    """A model of theirs as ours: ``to_hf`` turned around.

    ``theirs`` is ``config.to_dict()`` and ``state`` the state dict of the model in memory; in a folder both may differ.
    """
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise ConfigError(f"model_type={kind} is not known here: {', '.join(sorted(FAMILIES))} are")
    return FAMILIES[kind].take(theirs, state)


def family_of(cfg: ModelConfig, use: Use) -> Family:
    """Raises ConfigError where no public architecture is built so."""
    if use.visibility is Visibility.PREFIX:
        raise ConfigError(
            "objective: no public class sees a prefix from both sides and the rest causally: train with the causal or "
            "the encoder-decoder layout"
        )
    layers = layers_of(cfg)
    for i, layer in enumerate(cfg.layers):
        _check(i, layer)
    if use.encoder:
        return _encoder_decoder(layers)
    qk_norm = any(isinstance(layer.mixer, Attention) and layer.mixer.qk_norm for layer in layers)
    window = any(isinstance(layer.mixer, Attention) and layer.mixer.window for layer in layers)
    if all(isinstance(layer.mixer, SSM) and layer.mlp is None for layer in layers):
        return FAMILIES["mamba2"]
    moe = [layer.mlp for layer in layers if isinstance(layer.mlp, MoE)]
    if any(isinstance(layer.mixer, SSM) for layer in layers) or (
        any(mlp.n_shared for mlp in moe) and not qk_norm
    ):
        return FAMILIES["granitemoehybrid"]
    if moe:
        return FAMILIES["qwen3_moe" if qk_norm else "mixtral"]
    if qk_norm:
        return FAMILIES["qwen3"]
    if window:
        return FAMILIES["mistral"]
    return FAMILIES["eurobert" if use.visibility is Visibility.BIDIRECTIONAL else "llama"]


def _check(i: int, layer: Layer) -> None:
    known = {"mixer": (Attention, SSM), "mlp": (SwiGLU, MoE, type(None))}
    for part, kinds in known.items():
        found = getattr(layer, part)
        if not isinstance(found, kinds):
            raise ConfigError(
                f"model.layers.{i}.{part} is {type(found).__name__}, of which no public architecture is known here: "
                f"train with {' or '.join(kind.__name__ for kind in kinds[:2])}"
            )
    if layer.mlp is None and isinstance(layer.mixer, Attention):
        raise ConfigError(
            f"model.layers.{i} has attention and no MLP, as no public architecture has: train with mlp=SwiGLU"
        )


def _encoder_decoder(layers: list[Layer]) -> Family:
    only = "t5gemma, the one encoder-decoder of this kind, has no"
    for layer in layers:
        if not isinstance(layer.mlp, SwiGLU):
            raise ConfigError(f"{only} layers with {type(layer.mlp).__name__} as MLP: train with mlp=SwiGLU")
        if not isinstance(layer.mixer, Attention):
            raise ConfigError(f"{only} {type(layer.mixer).__name__}: train with mixer=Attention")
        if layer.mixer.qk_norm:
            raise ConfigError(
                f"{only} normalised queries and keys: train with model.norm=sandwich model.embed_scale=true "
                "model.cross.qk_norm=false model.layers.0.mixer.qk_norm=false, with heads alike in mixer and cross"
            )
    return FAMILIES["t5gemma"]
