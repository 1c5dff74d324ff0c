"""Initial weights, in one function: each parameter drawn in full from an address of its own."""

import torch
from torch import nn

from llmtrain import philox
from llmtrain.nn.roles import roles


@torch.no_grad()
def initialise(model: nn.Module, *, n_layers: int, seed: int) -> None:
    """Draw every parameter of ``model`` from (seed, its name), so that neither order nor sharding can change it.

    Matrices are normal with variance 1 / fan-in; those that write into the residual stream are divided by
    sqrt(2 n_layers) (GPT-2), so that its variance does not grow with depth. Embedding and head have variance
    1 / d_model, so that tied logits begin near unit variance. Vectors are ones (norms) or zeros (biases), unless the
    module that owns them has a method ``initial(name, generator)`` that says otherwise.
    """
    owners = {
        f"{prefix}.{name}".lstrip("."): m
        for prefix, m in model.named_modules()
        for name, _ in m.named_parameters("", False)
    }
    for name, role in roles(model).items():
        parameter = model.get_parameter(name)
        generator = torch.Generator().manual_seed(philox.draw_seed(seed, f"init {name}"))
        own = getattr(owners[name], "initial", None)
        if own is not None:
            value = own(name.rpartition(".")[2], generator)
        elif role.kind == "vector":
            value = torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
        else:
            std = parameter.shape[-1] ** -0.5 / ((2 * n_layers) ** 0.5 if role.residual else 1.0)
            value = torch.randn(parameter.shape, generator=generator) * std
        parameter.copy_(value)
