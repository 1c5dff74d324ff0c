"""What each parameter is for, so that optimisers and initialisation treat it rightly without knowing its layer."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import nn

Kind = Literal["matrix", "vector", "embedding", "head"]


class Role(NamedTuple):
    kind: Kind
    splits: tuple[
        int, ...
    ] = ()  # rows (dim -2) of the parts of a fused matrix, such as q, k and v; () is one part
    residual: bool = False  # writes into the residual stream, so its initial scale falls with depth
    features: bool = (
        False  # few outputs of many inputs that wide ones are multiplied by: not to begin ever smaller
    )


class Scale(NamedTuple):
    """How a parameter differs from the standard parametrisation, of a fused matrix part by part; 1 is not at all."""

    init: tuple[float, ...] = (1.0,)  # times its initial values
    rate: float = 1.0  # times a learning rate whose updates have entries of one size, as AdamW's
    gradient: float = 1.0  # how large its gradient is, and so what goes with it: AdamW's eps
    into: float = 1.0  # fan-in, in those of the base
    out: tuple[float, ...] = (1.0,)  # fan-out, likewise
    branch: float = 1.0  # what is left of the rate because more layers add to one residual stream

    def singular(self, part: int) -> float:
        """Times a learning rate whose updates have singular values of one size, as Muon's."""
        return self.branch * math.sqrt(self.out[part] / self.into)


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter by its name, a tied one once, under the name that ``named_parameters`` gives it.

    A module states the roles of its own parameters in an attribute ``roles`` (name -> Role). Without one, an
    embedding's table is ``embedding``, any other parameter of two dimensions a ``matrix``, the rest ``vector``. A
    ``matrix`` of three dimensions is a stack of matrices, one an expert.
    """
    stated = dict(_stated(model))
    return {name: stated.get(name) or _default(p.ndim) for name, p in model.named_parameters()}


def scales(model: nn.Module) -> dict[str, Scale]:
    """The scale of every parameter by its name: those that a module's attribute ``scales`` has, else the standard's."""
    given: dict[str, Scale] = {}
    for prefix, module in model.named_modules():
        own: dict[str, Scale] = getattr(module, "scales", {})
        given |= {f"{prefix}.{name}".lstrip("."): scale for name, scale in own.items()}
    return {name: given.get(name) or _standard(role) for name, role in roles(model).items()}


def linear(
    d_in: int, d_out: int, *, splits: tuple[int, ...] = (), residual: bool = False, features: bool = False
) -> nn.Linear:
    """A projection without bias that says what its role is."""
    module = nn.Linear(d_in, d_out, bias=False)
    module.roles = {"weight": Role("matrix", splits, residual, features)}  # type: ignore[assignment]
    return module


def _stated(model: nn.Module) -> Iterator[tuple[str, Role]]:
    for prefix, module in model.named_modules():
        own: dict[str, Role] = getattr(module, "roles", {})
        if isinstance(module, nn.Embedding):
            own = {"weight": Role("embedding")}
        for name, role in own.items():
            yield f"{prefix}.{name}".lstrip("."), role


def _default(ndim: int) -> Role:
    return Role("matrix" if ndim == 2 else "vector")


def _standard(role: Role) -> Scale:
    ones = (1.0,) * (len(role.splits) or 1)
    return Scale(init=ones, out=ones)
