"""Initial weights, in one function: each parameter drawn in full from an address of its own."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from llmtrain import philox
from llmtrain.nn.roles import roles, scales


@torch.no_grad()
def initialise(model: nn.Module, *, n_layers: int, seed: int) -> None:
    """Give every parameter of ``model`` what ``draws`` draws for it."""
    for name, value in draws(model, n_layers=n_layers, seed=seed):
        model.get_parameter(name).copy_(value)


def draws(model: nn.Module, *, n_layers: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, drawn in full from (seed, its name), so that neither order nor sharding can change it.

    ``model`` gives names and shapes, and may be on the meta device or sharded: one parameter is in memory at a time.
    Matrices are normal with variance 1 / fan-in; those that write into the residual stream are divided by
    sqrt(2 n_layers) (GPT-2), so that its variance does not grow with depth. Embedding and head have variance
    1 / d_model, so that tied logits begin near unit variance. Vectors are ones (norms) or zeros (biases), unless the
    module that owns them has a method ``initial(name, generator)`` that says otherwise. That is the standard
    parametrisation; the model's ``scales`` say what another one makes of it.
    """
    owners = {
        f"{prefix}.{name}".lstrip("."): m
        for prefix, m in model.named_modules()
        for name, _ in m.named_parameters("", False)
    }
    scale = scales(model)
    for name, role in roles(model).items():
        shape = model.get_parameter(name).shape
        generator = torch.Generator().manual_seed(philox.draw_seed(seed, f"init {name}"))
        own = getattr(owners[name], "initial", None)
        if own is not None:
            value = own(name.rpartition(".")[2], generator)
        elif role.kind == "vector":
            value = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        else:
            std = shape[-1] ** -0.5 / ((2 * n_layers) ** 0.5 if role.residual else 1.0)
            value = torch.randn(shape, generator=generator).mul_(std)
        yield name, _scaled(value, role.splits, scale[name].init)


def _scaled(value: Tensor, splits: tuple[int, ...], factors: tuple[float, ...]) -> Tensor:
    """``value`` times a factor, or each part of a fused matrix times its own."""
    for part, factor in zip(value.split(splits, -2) if splits else (value,), factors, strict=True):
        part.mul_(factor)
    return value
