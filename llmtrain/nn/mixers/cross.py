"""Cross-attention: how a decoder hears its encoder, whatever mixer the decoder is made of."""

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from llmtrain.config import config
from llmtrain.nn.base import Extent, Flops, Splits, dense_flops
from llmtrain.nn.mixers.attention import n_heads
from llmtrain.nn.norm import RMSNorm
from llmtrain.nn.parallel import per_rank
from llmtrain.nn.roles import linear
from llmtrain.ops.attention import attend
from llmtrain.ops.mask import Heads, KeyHeads
from llmtrain.ops.once import once_a_batch
from llmtrain.ops.qk import heads_of, norm_heads
from llmtrain.types import Seq, Visibility


@config
class CrossAttention:
    """Attention from every position to the source stream of its own document; no RoPE, since the two streams differ."""

    head_dim: PositiveInt = 64
    kv_group: PositiveInt = 1  # query heads that share a key and value head
    expand: PositiveFloat = 1.0  # width of all query heads together / d_model
    qk_norm: bool = True
    norm_eps: PositiveFloat = 1e-6

    def build(self, d_model: int) -> "CrossAttentionModule":
        return CrossAttentionModule(self, d_model)


class CrossAttentionModule(Splits, nn.Module):
    def __init__(self, cfg: CrossAttention, d_model: int):
        super().__init__()
        try:
            heads = n_heads(d_model, cfg.head_dim, cfg.kv_group, cfg.expand)
        except ValueError as error:
            raise ValueError(f"model.cross: {error}") from None
        d_q = heads * cfg.head_dim
        d_kv = d_q // cfg.kv_group
        self.cfg = cfg
        self.q = linear(d_model, d_q)
        self.n_kv_heads = d_kv // cfg.head_dim
        self.kv = linear(d_model, 2 * d_kv, splits=(d_kv, d_kv))
        self.out = linear(d_q, d_model, residual=True)
        if cfg.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(cfg.head_dim, eps=cfg.norm_eps) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "B T D"], seq: Seq, source: Float[Tensor, "B S D"], source_seq: Seq
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self._project(x, source)
        y = attend(q, k, v, seq, _open(source_seq), visibility=Visibility.BIDIRECTIONAL)
        return self.out(y.transpose(1, 2).flatten(2))

    def split_over(self, mesh: DeviceMesh) -> None:
        columns = ColwiseParallel()
        parallelize_module(self, mesh, {"q": columns, "kv": columns, "out": RowwiseParallel()})
        self.n_kv_heads = per_rank(self.n_kv_heads, mesh, "key and value heads of cross-attention")
        if self.cfg.qk_norm:
            self.q_norm.mesh = self.k_norm.mesh = mesh

    def flops(self, extent: Extent) -> Flops:
        scores = 4 * self.q.out_features * extent.tokens * extent.source
        own, other = dense_flops(extent.tokens, self.q, self.out), dense_flops(extent.source, self.kv)
        return own.plus(other, Flops(scores, scores))

    def _project(self, x: Tensor, source: Tensor) -> tuple[Heads, KeyHeads, KeyHeads]:
        q, kv = self.q(x), self.kv(source)
        d, eps, n = self.cfg.head_dim, self.cfg.norm_eps, self.n_kv_heads
        if not self.cfg.qk_norm:
            k, v = heads_of(kv, d).split(n, 1)
            return heads_of(q, d), k, v
        q, _ = norm_heads(q, self.q_norm.gain(), n=q.shape[-1] // d, eps=eps)
        k, v = norm_heads(kv, self.k_norm.gain(), n=n, eps=eps)
        return q, k, v


@once_a_batch
def _open(seq: Seq) -> Seq:
    """The same stream, of which every document is seen whole."""
    return Seq(seq.ids, seq.doc, seq.pos, torch.ones_like(seq.prefix))
