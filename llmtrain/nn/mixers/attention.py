"""Multi-head attention with rotary positions, grouped keys, normalised queries and keys, and a window if wanted."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from llmtrain.config import config
from llmtrain.nn.base import Extent, Flops, Mixer, MixerModule, dense_flops
from llmtrain.nn.norm import RMSNorm
from llmtrain.nn.parallel import per_rank
from llmtrain.nn.roles import linear
from llmtrain.ops.attention import attend
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.qk import Parts, norm_and_rotate, split_qkv
from llmtrain.ops.rope import rotate, rotation
from llmtrain.types import Seq, Visibility


@config
class Attention(Mixer):
    """The attention of Qwen3 (2025): GQA (Ainslie et al. 2023), RMS-normalised queries and keys, RoPE, no biases."""

    head_dim: int = 64
    kv_group: int = (
        1  # query heads that share one key and value head: 1 is multi-head, all of them multi-query
    )
    expand: PositiveFloat = 1.0  # width of all query heads together / d_model
    qk_norm: bool = True
    rope_base: PositiveFloat = 10_000.0
    window: int | None = None  # positions at this distance or further are not seen
    norm_eps: PositiveFloat = 1e-6

    def __post_init__(self) -> None:
        for name in ("head_dim", "kv_group", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, since RoPE turns pairs, got {self.head_dim}")

    @property
    def splits_over_ranks(self) -> bool:
        return True

    def n_heads(self, d_model: int) -> int:
        return n_heads(d_model, self.head_dim, self.kv_group, self.expand)

    def build(self, d_model: int, visibility: Visibility) -> "AttentionModule":
        return AttentionModule(self, d_model, visibility)


def n_heads(d_model: int, head_dim: int, kv_group: int, expand: float) -> int:
    """Query heads in a model of that width. Raises ValueError where they do not come out whole."""
    wanted = expand * d_model / head_dim
    n = round(wanted)
    if n < 1 or abs(n - wanted) > 1e-3:  # a ratio written with few digits gives the number that was meant
        width = f"d_model={d_model}" if expand == 1 else f"expand={expand:g} times d_model={d_model}"
        raise ValueError(f"{width} is no multiple of head_dim={head_dim}; set model.d_model or head_dim")
    if n % kv_group:
        raise ValueError(
            f"d_model={d_model} makes {n} heads of {head_dim}, not a multiple of kv_group={kv_group}"
        )
    return n


class Cache(NamedTuple):
    """What the tokens so far left for later ones: keys, values, and where they stand."""

    k: Float[Tensor, "B G S K"]
    v: Float[Tensor, "B G S K"]
    seq: Seq


class AttentionModule(MixerModule):
    def __init__(self, cfg: Attention, d_model: int, visibility: Visibility):
        super().__init__()
        self.cfg, self.visibility = cfg, visibility
        self.n_heads = cfg.n_heads(d_model)
        self.n_kv_heads = self.n_heads // cfg.kv_group
        d_q, d_kv = self.n_heads * cfg.head_dim, self.n_kv_heads * cfg.head_dim
        self.qkv = linear(d_model, d_q + 2 * d_kv, splits=(d_q, d_kv, d_kv))
        self.out = linear(d_q, d_model, residual=True)
        if cfg.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(cfg.head_dim, eps=cfg.norm_eps) for _ in range(2))

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Float[Tensor, "B T D"]:
        q, k, v = self._project(x, seq)
        return self._attend(q, k, v, seq, seq)

    def split_over(self, mesh: DeviceMesh) -> None:
        """Heads by groups: key and value heads, each with the query heads that share it."""
        parallelize_module(self, mesh, {"qkv": ColwiseParallel(), "out": RowwiseParallel()})
        self.n_kv_heads = per_rank(self.n_kv_heads, mesh, "key and value heads")
        self.n_heads = self.n_kv_heads * self.cfg.kv_group
        if self.cfg.qk_norm:
            self.q_norm.mesh = self.k_norm.mesh = mesh

    def init_state(self, rows: int) -> Cache:
        w = self.qkv.weight
        empty = w.new_empty(rows, self.n_kv_heads, 0, self.cfg.head_dim)
        none = torch.empty(rows, 0, dtype=torch.long, device=w.device)
        return Cache(empty, empty, Seq(none, none, none, none.bool()))

    def step(self, x: Float[Tensor, "B T D"], seq: Seq, state: Cache) -> tuple[Float[Tensor, "B T D"], Cache]:
        q, k, v = self._project(x, seq)
        seen = Seq(*(torch.cat(pair, 1) for pair in zip(state.seq, seq, strict=True)))
        state = Cache(torch.cat((state.k, k), 2), torch.cat((state.v, v), 2), seen)
        return self._attend(q, state.k, state.v, seq, state.seq), state

    def flops(self, extent: Extent) -> Flops:
        per_pair = 4 * self.n_heads * self.cfg.head_dim  # one product for the score, one for the value
        scores = Flops(per_pair * extent.pairs(self.cfg.window), per_pair * extent.tokens**2)
        return dense_flops(extent.tokens, self.qkv, self.out).plus(scores)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_seq: Seq, k_seq: Seq) -> Tensor:
        y = attend(q, k, v, q_seq, k_seq, visibility=self.visibility, window=self.cfg.window)
        return self.out(y.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, seq: Seq) -> Parts:
        qkv = self.qkv(x)
        wide = at_least_float32(qkv.dtype) if self.cfg.qk_norm else qkv.dtype
        turn = rotation(seq.pos, d=self.cfg.head_dim, base=self.cfg.rope_base, dtype=wide)
        if self.cfg.qk_norm:
            gains = self.q_norm.gain(), self.k_norm.gain()
            return norm_and_rotate(qkv, *gains, turn, n_heads=self.n_heads, eps=self.cfg.norm_eps)
        q, k, v = split_qkv(qkv, self.cfg.head_dim, n_heads=self.n_heads)
        return rotate(q, turn), rotate(k, turn), v
