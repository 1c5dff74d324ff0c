"""RMS normalisation of attention's heads, in at least float32 whatever autocast has made of its input."""

import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.ops.dtypes import at_least_float32


class HeadNorm(nn.RMSNorm):
    """The result stays wide, so that the rotation after it does not round either; ``attend`` narrows it.

    ``nn.RMSNorm`` itself warns of a bfloat16 input beside a float32 gain, and leaves its fused kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x.dtype)
        return F.rms_norm(x.to(wide), tuple(self.normalized_shape), self.weight.to(wide), self.eps)
