"""RMS normalisation as a layer, of the residual stream and of attention's heads."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from llmtrain.nn.parallel import spread_out
from llmtrain.ops.norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """Computes in at least float32, whatever autocast has made of its input, and returns that.

    ``nn.RMSNorm`` warns of a bfloat16 input beside a float32 gain, and has no fast path on the CPU.
    """

    eps: float
    mesh: DeviceMesh | None = None  # where each of its ranks has other heads to normalise, by the same gain

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return rms_norm(x, self.gain(), self.eps)

    def gain(self) -> Float[Tensor, " D"]:
        return spread_out(self.weight, self.mesh)
