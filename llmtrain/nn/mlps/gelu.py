"""The plain two-layer MLP of the first Transformers, with GELU."""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from llmtrain.config import config
from llmtrain.nn.base import MLP, Extent, Flops, MLPModule, dense_flops
from llmtrain.nn.mlps.width import d_ff
from llmtrain.nn.parallel import per_rank
from llmtrain.nn.roles import linear
from llmtrain.types import Hidden, Seq, Visibility


@config
class GELU(MLP):
    """``down(gelu(up(x)))`` (Hendrycks and Gimpel 2016), as in GPT-2 and BERT, without biases."""

    ratio: PositiveFloat = 4.0  # d_ff / d_model
    multiple_of: PositiveInt = 8  # d_ff is rounded up to one

    @property
    def splits_over_ranks(self) -> bool:
        return True

    def build(self, d_model: int, visibility: Visibility) -> "GELUModule":
        return GELUModule(d_model, d_ff(d_model, self.ratio, self.multiple_of))


class GELUModule(MLPModule):
    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.up = linear(d_model, d_ff)
        self.down = linear(d_ff, d_model, residual=True)

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Hidden:
        return Hidden(self.down(F.gelu(self.up(x))), ())

    def split_over(self, mesh: DeviceMesh) -> None:
        per_rank(self.down.in_features, mesh, "inner units of an MLP")
        parallelize_module(self, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})

    def flops(self, extent: Extent) -> Flops:
        return dense_flops(extent.tokens, self.up, self.down)
