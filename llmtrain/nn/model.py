"""Blocks, trunks and the model: one class for dense, MoE, SSM and every hybrid of them."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from llmtrain.config import config
from llmtrain.nn.base import MLP, Extent, Flops, HeadModule, LayerConfig, Mixer
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.norm import RMSNorm
from llmtrain.nn.roles import Role, Scale
from llmtrain.ops.dropout import dropout
from llmtrain.types import Hidden, Routing, Seq, Visibility

Source = tuple[Tensor, Seq]  # an encoder's output [B S D] and the stream that it read
Key = Int[Tensor, " B"] | None  # addresses each row's dropout; none: nothing is dropped
_ENCODER = 1 << 20  # the first place of an encoder's layers, after those of any trunk


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
    norm_eps: PositiveFloat = 1e-6
    tie_embeddings: bool = True  # the head reads the input embedding's table
    share_embeddings: bool = True  # an encoder reads the decoder's table; else it has one of its own
    embed_scale: bool = False  # embeddings times sqrt(d_model) (Vaswani et al. 2017), as Gemma has them
    readout: PositiveFloat = 1.0  # hidden states are multiplied by it on their way to the head
    dropout: float = 0.0  # share of what each part adds to the residual stream, and of the embedding
    cross: CrossAttention = CrossAttention()  # used where the objective asks for an encoder

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers is empty: give at least one {mixer, mlp}")
        for name in ("n_layers", "d_model"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def layer(self, i: int) -> Layer:
        return self.layers[i % len(self.layers)]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_layers, d_model), once both are known."""
        if self.n_layers is None or self.d_model is None:
            raise ValueError("the model has no n_layers or no d_model: give both, or a size that sets them")
        return self.n_layers, self.d_model


_PARTS = ("mixer", "cross", "mlp")


class Block(nn.Module):
    """x + mixer(norm(x)), then the same with cross-attention, where there is a source, and with the MLP."""

    def __init__(self, cfg: ModelConfig, i: int, visibility: Visibility, *, cross: bool, place: int = 0):
        """``place`` + 0, 1, 2 address the dropout of the three parts."""
        super().__init__()
        self.dropout, self.place = cfg.dropout, place
        layer, (_, d_model) = cfg.layer(i), cfg.shape
        self.mixer = layer.mixer.build(d_model, visibility)
        self.cross = cfg.cross.build(d_model) if cross else None
        self.mlp = layer.mlp.build(d_model, visibility) if layer.mlp is not None else None
        parts = [name for name in _PARTS if getattr(self, name) is not None]

        def norms() -> nn.ModuleDict:
            return nn.ModuleDict({name: RMSNorm(d_model, eps=cfg.norm_eps) for name in parts})

        self.before = norms()
        self.after = norms() if cfg.norm == "sandwich" else None
        for norm in self.after.values() if self.after is not None else ():
            norm.roles = {"weight": Role("vector", residual=True)}  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq, source: Source | None, key: Key = None) -> Hidden:
        x = x + self._after("mixer", self.mixer(self.before["mixer"](x), seq), key)
        return self._rest(x, seq, source, key)

    def step(
        self, x: Float[Tensor, "B T D"], seq: Seq, source: Source | None, state: Any
    ) -> tuple[Hidden, Any]:
        y, state = self.mixer.step(self.before["mixer"](x), seq, state)
        return self._rest(x + self._after("mixer", y, None), seq, source, None), state

    def flops(self, extent: Extent) -> Flops:
        return Flops().plus(*(part.flops(extent) for part in self._parts()))

    def split_over(self, mesh: DeviceMesh) -> None:
        """Share the matrices of all parts out over the ranks of ``mesh``; norms stay whole on each."""
        for part in self._parts():
            part.split_over(mesh)

    def _parts(self) -> Iterator[Any]:
        return (part for part in (self.mixer, self.cross, self.mlp) if part is not None)

    def _rest(self, x: Tensor, seq: Seq, source: Source | None, key: Key) -> Hidden:
        assert (self.cross is None) == (source is None), "a decoder needs its source at every step"
        if self.cross is not None and source is not None:
            x = x + self._after("cross", self.cross(self.before["cross"](x), seq, *source), key)
        if self.mlp is None:
            return Hidden(x, ())
        h, routing = self.mlp(self.before["mlp"](x), seq)
        return Hidden(x + self._after("mlp", h, key), routing)

    def _after(self, name: str, y: Tensor, key: Key) -> Tensor:
        y = y if self.after is None else self.after[name](y)
        return y if key is None else dropout(y, self.dropout, key, self.place + _PARTS.index(name))


class Trunk(nn.Module):
    def __init__(self, cfg: ModelConfig, visibility: Visibility, *, cross: bool = False, place: int = 0):
        super().__init__()
        n_layers, d_model = cfg.shape
        self.dropout, self.place = cfg.dropout, place
        self.recompute = (
            False  # whether a block keeps only its input, and is computed anew for the backward pass
        )
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(cfg, i, visibility, cross=cross, place=place + len(_PARTS) * i + 1) for i in range(n_layers)
        )
        self.norm = RMSNorm(d_model, eps=cfg.norm_eps)

    def forward(
        self, x: Float[Tensor, "B T D"], seq: Seq, source: Source | None = None, *, key: Key = None
    ) -> Hidden:
        routing: tuple[Routing, ...] = ()
        key = key if self.training and self.dropout else None
        x = x if key is None else dropout(x, self.dropout, key, self.place)
        for block in self.blocks:
            x, counted = self._through(block, x, seq, source, key)
            routing += counted
        return Hidden(self.norm(x), routing)

    def _through(self, block: Block, *inputs: Any) -> Hidden:
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        # dropout is addressed and what routers counted is returned, so nothing is drawn or counted twice
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

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
        self.source_embed = (
            nn.Embedding(vocab_size, d_model) if encoder and not cfg.share_embeddings else None
        )
        self.scale = d_model**0.5 if cfg.embed_scale else None
        self.readout = cfg.readout
        self.scales: dict[str, Scale] = {}  # of its parameters by name, where they are not the standard ones
        self.encoder = Trunk(cfg, Visibility.BIDIRECTIONAL, place=_ENCODER) if encoder else None
        self.trunk = Trunk(cfg, visibility, cross=encoder)
        self.head = head
        if cfg.tie_embeddings:
            head.tie(nn.Module.get_parameter(self.embed, "weight"))

    def forward(self, seq: Seq, source: Seq | None = None, *, key: Key = None) -> Hidden:
        """Hidden states of ``seq``, which a decoder reads beside ``source``; ``key`` addresses dropout in training."""
        if source is None:
            return self._read(self.trunk(self._embedded(seq), seq, key=key))
        memory = self._encoded(source, key)
        out = self._read(self.trunk(self._embedded(seq), seq, (memory.h, source), key=key))
        return Hidden(out.h, memory.routing + out.routing)

    def stacks(self) -> list[Trunk]:
        return [trunk for trunk in (self.encoder, self.trunk) if trunk is not None]

    def recompute_blocks(self) -> None:
        """From now on, keep of each block its input alone, and compute the rest anew for the backward pass."""
        for trunk in self.stacks():
            trunk.recompute = True

    def taps(self, seq: Seq) -> list[Float[Tensor, "B T D"]]:
        """The embedding and what each layer adds up to, of the stack that reads text (the encoder where there is one).

        The last is normalised, as a head reads it.
        """
        stack, table = (self.trunk, None) if self.encoder is None else (self.encoder, self.source_embed)
        layers = range(len(stack.blocks) + 1)
        *inner, last = stack.taps(self._embedded(seq, table), seq, layers).values()
        return [*inner, stack.norm(last)]

    def encode(self, source: Seq) -> Source:
        """What a decoder reads at every ``step``."""
        return self._encoded(source, None).h, source

    def init_state(self, rows: int) -> list[Any]:
        return self.trunk.init_state(rows)

    def step(
        self, seq: Seq, state: list[Any], source: Source | None = None
    ) -> tuple[Float[Tensor, "B T D"], list[Any]]:
        """Hidden states of the next tokens of a decoder, and its state after them; a prefix comes whole in one call."""
        h, state = self.trunk.step(self._embedded(seq), seq, state, source)
        return self._read(Hidden(h, ())).h, state

    def _encoded(self, source: Seq, key: Key) -> Hidden:
        assert self.encoder is not None, "a source needs an encoder, which the objective asks for"
        return self.encoder(self._embedded(source, self.source_embed), source, key=key)

    def _read(self, out: Hidden) -> Hidden:
        return out if self.readout == 1.0 else Hidden(out.h * self.readout, out.routing)

    def _embedded(self, seq: Seq, table: nn.Embedding | None = None) -> Float[Tensor, "B T D"]:
        x = (self.embed if table is None else table)(seq.ids)
        return x if self.scale is None else x * self.scale


class TokenHead(HeadModule):
    """Scores every token of the vocabulary; its table is the embedding's where the model ties them."""

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.roles = {"weight": Role("head")}

    def forward(self, h: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return nn.functional.linear(h, self.weight)

    def tie(self, table: nn.Parameter) -> None:
        self.weight = table

    def flops(self, scored: int, batch_rows: int) -> Flops:
        return Flops(*[2 * scored * self.weight.numel()] * 2)
