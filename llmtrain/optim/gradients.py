"""The gradients of a step as one vector: its length, and which of its parts is not finite."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from llmtrain.ops.dtypes import at_least_float32


def global_norm(grads: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all ``grads`` together, in at least float32; sharded ones are reduced over their own mesh."""
    by_mesh: dict[DeviceMesh | None, list[Tensor]] = defaultdict(list)
    for grad in grads:
        by_mesh[grad.device_mesh if isinstance(grad, DTensor) else None].append(grad)
    return torch.linalg.vector_norm(torch.stack([_norm(group) for group in by_mesh.values()]))


def first_nonfinite(weights: Mapping[str, nn.Parameter]) -> str | None:
    """The name of the first parameter whose gradient, as far as it lies on this rank, is not finite."""
    for name, p in weights.items():
        grad = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
        if grad is not None and not bool(torch.isfinite(grad).all()):
            return name
    return None


def _norm(grads: list[Tensor]) -> Float[Tensor, ""]:
    dtype = at_least_float32(grads[0].dtype)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=dtype)))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
