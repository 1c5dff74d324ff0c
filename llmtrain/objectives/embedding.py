"""One vector of a text: pooled hidden states, perhaps projected, and the temperature they are compared at."""

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.nn.base import Flops, HeadModule
from llmtrain.nn.model import Model, TokenHead
from llmtrain.nn.roles import Role, linear
from llmtrain.objectives.pairs import Pairs
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.types import NO_DOC, Hidden, Seq

Pooling = Literal["mean", "last", "first"]
MAX_SCALE = 100.0  # one over the least temperature that is learnt, as in CLIP


def pool(h: Float[Tensor, "B T D"], seq: Seq, how: Pooling) -> Float[Tensor, "B D"]:
    """The mean over the tokens of each row, or its last or first; padding, which comes last, is left out."""
    real = seq.doc != NO_DOC
    if how == "mean":
        wide = h.to(at_least_float32(h.dtype))
        return (wide * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
    if how == "first":
        return h[:, 0]
    return h[torch.arange(len(h), device=h.device), (real.sum(1) - 1).clamp_min(0)]


class ContrastiveHead(HeadModule):
    """Pools and projects. ``tokens`` predicts tokens beside that, where the objective has a term for it."""

    def __init__(
        self,
        d_model: int,
        *,
        pooling: Pooling,
        projection: int | None,
        temperature: float,
        learn_temperature: bool,
        widths: tuple[int, ...],
        directions: int,
        tokens: TokenHead | None,
    ):
        """``widths`` are those that embeddings are compared at, in so many ``directions``."""
        super().__init__()
        self.pooling, self.temperature = pooling, temperature
        self.widths, self.directions = widths, directions
        self.projection = None if projection is None else linear(d_model, projection)
        # not a scalar, which could not be sharded
        self.log_scale = nn.Parameter(torch.empty(1)) if learn_temperature else None
        self.roles = {"log_scale": Role("vector")} if learn_temperature else {}
        self.tokens = tokens

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        assert name == "log_scale"
        return torch.tensor([-math.log(self.temperature)])

    def forward(self, h: Float[Tensor, "B T D"], seq: Seq) -> Float[Tensor, "B K"]:
        z = pool(h, seq, self.pooling)
        return z if self.projection is None else self.projection(z)

    def scale(self) -> Float[Tensor, "1"] | float:
        """One over the temperature; a learnt one stays within [1, 100]."""
        return 1 / self.temperature if self.log_scale is None else _Within.apply(self.log_scale).exp()

    def tie(self, table: nn.Parameter) -> None:
        if self.tokens is not None:
            self.tokens.tie(table)

    def flops(self, scored: int, batch_rows: int) -> Flops:
        """Of one view: its vector, ``scored`` - 1 predicted tokens, and half of its row's share of the similarities.

        All pairs of the batch have one similarity, whichever way it is read; each direction computes it anew.
        """
        one = 0 if self.projection is None else 2 * self.projection.weight.numel()
        similarities = batch_rows * sum(self.widths)
        out = Flops(one + similarities, one + self.directions * similarities)
        return out if self.tokens is None else out.plus(self.tokens.flops(scored - 1, batch_rows))


class _Within(torch.autograd.Function):
    """log(scale) within [0, log 100]; a gradient that would lead further out is dropped, one that leads back is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0.0, math.log(MAX_SCALE))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad = grads[0]
        out = ((x > math.log(MAX_SCALE)) & (grad < 0)) | ((x < 0) & (grad > 0))
        return grad.masked_fill(out, 0.0)


class Embedded(NamedTuple):
    z: Float[Tensor, "B 2 D"]  # both views of each row, not normalised
    hidden: Hidden  # of 2 B rows, the second views after the first


def embed(model: Model, pairs: Pairs) -> Embedded:
    """Both views in one pass."""
    views = pairs.first, pairs.second
    text = Seq(*(torch.cat(parts) for parts in zip(*(view.text for view in views), strict=True)))
    hidden = model(text, key=torch.cat([view.key for view in views]))
    return Embedded(torch.stack(head_of(model)(hidden.h, text).chunk(2), 1), hidden)


def head_of(model: Model) -> ContrastiveHead:
    assert isinstance(model.head, ContrastiveHead)
    return model.head
