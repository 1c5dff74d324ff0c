"""The gated MLP of most language models since PaLM."""

from collections.abc import Callable
from functools import partial
from typing import Literal

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

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@config
class SwiGLU(MLP):
    """``down(gate(g) * up)`` with g and up two projections of x (Shazeer 2020); with ``gelu`` it is GeGLU."""

    ratio: PositiveFloat = 8 / 3  # d_ff / d_model; 8/3 has as many weights as a plain MLP of ratio 4
    multiple_of: PositiveInt = 8  # d_ff is rounded up to one
    gate: Literal["silu", "gelu", "gelu_tanh"] = "silu"  # the last is gelu's approximation, which Gemma has

    @property
    def splits_over_ranks(self) -> bool:
        return True

    def build(self, d_model: int, visibility: Visibility) -> "SwiGLUModule":
        return SwiGLUModule(d_model, d_ff(d_model, self.ratio, self.multiple_of), self.gate)


class SwiGLUModule(MLPModule):
    def __init__(self, d_model: int, d_ff: int, gate: str = "silu"):
        super().__init__()
        self.gate = GATES[gate]
        self.gate_up = linear(d_model, 2 * d_ff, splits=(d_ff, d_ff))
        self.down = linear(d_ff, d_model, residual=True)

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Hidden:
        gate, up = self.gate_up(x).chunk(2, -1)
        return Hidden(self.down(self.gate(gate) * up), ())

    def split_over(self, mesh: DeviceMesh) -> None:
        per_rank(self.down.in_features, mesh, "inner units of an MLP")
        parallelize_module(self, mesh, {"gate_up": ColwiseParallel(), "down": RowwiseParallel()})

    def flops(self, extent: Extent) -> Flops:
        return dense_flops(extent.tokens, self.gate_up, self.down)
