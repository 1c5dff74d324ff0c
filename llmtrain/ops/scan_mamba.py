"""The scan by the Triton kernels of mamba_ssm, where there is a GPU and the package is installed."""

from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.ops import dataless
from llmtrain.types import NO_DOC


def mamba(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    doc: Int[Tensor, "B T"],
    *,
    chunk: int,
    reverse: bool,
) -> Float[Tensor, "B T H P"]:
    """Its kernels run forward in time and take document numbers from 0, so time is turned and padding renumbered."""
    if not dataless.has_data(x):
        return dataless.mamba(x, dt, a, b, c, doc, chunk=chunk, reverse=reverse)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def turned(t: Tensor) -> Tensor:
        return t.flip(1) if reverse else t

    chunk = 1 << max(4, (chunk - 1).bit_length())  # Triton takes powers of two
    documents = turned(doc - NO_DOC).int().contiguous()
    y = mamba_chunk_scan_combined(
        turned(x), turned(dt), a, turned(b), turned(c), chunk_size=chunk, seq_idx=documents
    )
    return turned(y).masked_fill((doc == NO_DOC)[..., None, None], 0.0)  # padding has heard itself
