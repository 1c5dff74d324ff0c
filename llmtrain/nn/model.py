"""Blocks, trunks and the model: one class for dense, MoE, SSM and every hybrid of them."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.config import config
from llmtrain.nn.base import MLP, Extent, Flops, HeadModule, LayerConfig, Mixer
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.norm import RMSNorm
from llmtrain.nn.roles import Role
from llmtrain.types import Hidden, Routing, Seq, Visibility

Source = tuple[Tensor, Seq]  # an encoder's output [B S D] and the stream that it read


@config
class Layer:
    mixer: Mixer
    mlp: MLP | None = None  # none in a pure Mamba stack

    def parts(self) -> Iterator[LayerConfig]:
        yield self.mixer
        if self.mlp is not None:
            yield self.mlp


@config
class ModelConfig:
    layers: tuple[Layer, ...]  # a pattern, repeated until there are n_layers blocks
    n_layers: int | None = None  # none: the size dial's
    d_model: int | None = None  # none: the size dial's
    norm: Literal["pre", "sandwich"] = "pre"  # before each part, or before and after it
    norm_eps: float = 1e-6
    tie_embeddings: bool = True  # the head reads the input embedding's table
    cross: CrossAttention = CrossAttention()  # used where the objective asks for an encoder

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers is empty: give at least one {mixer, mlp}")
        for name in ("n_layers", "d_model"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def layer(self, i: int) -> Layer:
        return self.layers[i % len(self.layers)]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_layers, d_model), once both are known."""
        if self.n_layers is None or self.d_model is None:
            raise ValueError("the model has no n_layers or no d_model: give both, or a size that sets them")
        return self.n_layers, self.d_model


class Block(nn.Module):
    """x + mixer(norm(x)), then the same with cross-attention, where there is a source, and with the MLP."""

    def __init__(self, cfg: ModelConfig, i: int, visibility: Visibility, *, cross: bool):
        super().__init__()
        layer, (_, d_model) = cfg.layer(i), cfg.shape
        self.mixer = layer.mixer.build(d_model, visibility)
        self.cross = cfg.cross.build(d_model) if cross else None
        self.mlp = layer.mlp.build(d_model, visibility) if layer.mlp is not None else None
        parts = [name for name in ("mixer", "cross", "mlp") if getattr(self, name) is not None]

        def norms() -> nn.ModuleDict:
            return nn.ModuleDict({name: RMSNorm(d_model, eps=cfg.norm_eps) for name in parts})

        self.before = norms()
        self.after = norms() if cfg.norm == "sandwich" else None

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq, source: Source | None) -> Hidden:
        x = x + self._after("mixer", self.mixer(self.before["mixer"](x), seq))
        return self._rest(x, seq, source)

    def step(
        self, x: Float[Tensor, "B T D"], seq: Seq, source: Source | None, state: Any
    ) -> tuple[Hidden, Any]:
        y, state = self.mixer.step(self.before["mixer"](x), seq, state)
        return self._rest(x + self._after("mixer", y), seq, source), state

    def flops(self, extent: Extent) -> Flops:
        return Flops().plus(
            *(part.flops(extent) for part in (self.mixer, self.cross, self.mlp) if part is not None)
        )

    def _rest(self, x: Tensor, seq: Seq, source: Source | None) -> Hidden:
        assert (self.cross is None) == (source is None), "a decoder needs its source at every step"
        if self.cross is not None and source is not None:
            x = x + self._after("cross", self.cross(self.before["cross"](x), seq, *source))
        if self.mlp is None:
            return Hidden(x, ())
        h, routing = self.mlp(self.before["mlp"](x), seq)
        return Hidden(x + self._after("mlp", h), routing)

    def _after(self, name: str, y: Tensor) -> Tensor:
        return y if self.after is None else self.after[name](y)


class Trunk(nn.Module):
    def __init__(self, cfg: ModelConfig, visibility: Visibility, *, cross: bool = False):
        super().__init__()
        n_layers, d_model = cfg.shape
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(cfg, i, visibility, cross=cross) for i in range(n_layers)
        )
        self.norm = RMSNorm(d_model, eps=cfg.norm_eps)

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq, source: Source | None = None) -> Hidden:
        routing: tuple[Routing, ...] = ()
        for block in self.blocks:
            x, counted = block(x, seq, source)
            routing += counted
        return Hidden(self.norm(x), routing)

    def taps(
        self, x: Float[Tensor, "B T D"], seq: Seq, layers: Collection[int], source: Source | None = None
    ) -> dict[int, Float[Tensor, "B T D"]]:
        """The residual stream after each of the named layers (0 is the embedding), for probes."""
        out = {0: x}
        for i, block in enumerate(self.blocks, 1):
            out[i] = block(out[i - 1], seq, source).h
        return {i: out[i] for i in layers}

    def init_state(self, rows: int) -> list[Any]:
        return [block.mixer.init_state(rows) for block in self.blocks]

    def step(
        self, x: Float[Tensor, "B T D"], seq: Seq, state: list[Any], source: Source | None = None
    ) -> tuple[Float[Tensor, "B T D"], list[Any]]:
        """Hidden states of the next tokens and the state after them; step by step equals ``forward``."""
        after = []
        for block, one in zip(self.blocks, state, strict=True):
            (x, _), moved = block.step(x, seq, source, one)
            after.append(moved)
        return self.norm(x), after

    def flops(self, extent: Extent) -> Flops:
        return Flops().plus(*(block.flops(extent) for block in self.blocks))


class Model(nn.Module):
    """Embedding, trunk, perhaps an encoder, and the objective's head: the trunk never knows which."""

    def __init__(
        self,
        cfg: ModelConfig,
        visibility: Visibility,
        *,
        vocab_size: int,
        head: HeadModule,
        encoder: bool = False,
    ):
        super().__init__()
        _, d_model = cfg.shape
        self.embed = nn.Embedding(vocab_size, d_model)
        self.encoder = Trunk(cfg, Visibility.BIDIRECTIONAL) if encoder else None
        self.trunk = Trunk(cfg, visibility, cross=encoder)
        self.head = head
        if cfg.tie_embeddings and head.tied_to_embedding:
            head.weight = nn.Module.get_parameter(self.embed, "weight")

    def forward(self, seq: Seq, source: Seq | None = None) -> Hidden:
        if self.encoder is None or source is None:
            return self.trunk(self.embed(seq.ids), seq)
        memory = self.encoder(self.embed(source.ids), source)
        out = self.trunk(self.embed(seq.ids), seq, (memory.h, source))
        return Hidden(out.h, memory.routing + out.routing)

    def init_state(self, rows: int) -> list[Any]:
        return self.trunk.init_state(rows)

    def step(self, seq: Seq, state: list[Any]) -> tuple[Float[Tensor, "B T D"], list[Any]]:
        """Hidden states of the next tokens of a decoder, and its state after them."""
        return self.trunk.step(self.embed(seq.ids), seq, state)


class TokenHead(HeadModule):
    """Scores every token of the vocabulary; its table is the embedding's where the model ties them."""

    tied_to_embedding: ClassVar[bool] = True

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.roles = {"weight": Role("head")}

    def forward(self, h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return nn.functional.linear(h, self.weight)

    def flops(self, scored: int) -> Flops:
        return Flops(*[2 * scored * self.weight.numel()] * 2)
