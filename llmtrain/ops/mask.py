"""What attention may see, written out: the visibility of the objective, cut to a layer's window."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from llmtrain.types import Seq, visible

Heads = Float[Tensor, "B H T K"]
KeyHeads = Float[Tensor, "B G S K"]
Kernel = Callable[..., Tensor]  # (q, k, v, q_seq, k_seq, *, visibility, window) -> Heads


def mask(q: Seq, k: Seq, window: int | None) -> Bool[Tensor, "B T S"]:
    """``visible``, and with a window only positions less than ``window`` away."""
    seen = visible(q, k)
    if window is None:
        return seen
    return seen & ((q.pos[:, :, None] - k.pos[:, None, :]).abs() < window)
