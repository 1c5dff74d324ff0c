"""The gradients of a step as one vector: its length, and which of its parts is not finite."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmtrain.ops.dtypes import at_least_float32
from llmtrain.place import is_first, local


def global_norm(grads: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all ``grads`` together, in at least float32, the same on every rank."""
    whole = [grad for grad in grads if not isinstance(grad, DTensor)]
    shards = [grad for grad in grads if isinstance(grad, DTensor)]
    if not shards:
        return _norm(whole)
    # each element once over all ranks, in one sum: its order, and so its bits, are the same for all
    own = _norm(
        [local(grad) for grad in shards if is_first(grad)] or [local(shards[0]).new_zeros(1)]
    ).square()
    dist.all_reduce(own)
    return (own + _norm(whole).square() if whole else own).sqrt()


def scale(grads: Sequence[Tensor], factor: float) -> None:
    """Multiply all ``grads`` in place."""
    torch._foreach_mul_([local(grad) for grad in grads], factor)


def first_nonfinite(weights: Mapping[str, nn.Parameter]) -> str | None:
    """The name of the first parameter whose gradient, as far as it lies on this rank, is not finite."""
    for name, p in weights.items():
        if p.grad is not None and not bool(torch.isfinite(local(p.grad)).all()):
            return name
    return None


def _norm(grads: list[Tensor]) -> Float[Tensor, ""]:
    dtype = at_least_float32(grads[0].dtype)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=dtype)))
