"""How initial values and learning rates follow width and depth, so that what is tuned small holds large."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic import PositiveInt
from torch import nn

from llmtrain.config import config
from llmtrain.nn.model import Block, Model, ModelConfig
from llmtrain.nn.roles import Role, Scale, roles

Build = Callable[[ModelConfig], Model]  # of a model without memory, on the meta device


@config
class Parametrization(ABC):
    """What a larger model does otherwise than a smaller one, beside having more parameters."""

    @property
    @abstractmethod
    def label(self) -> str:
        """As records call it."""

    @abstractmethod
    def applied(self, cfg: ModelConfig) -> ModelConfig:
        """``cfg``, whose width is known, with what the function itself needs."""

    @abstractmethod
    def scales(self, cfg: ModelConfig, build: Build) -> dict[str, Scale]:
        """The scale of every parameter of the model of ``cfg`` that is not the standard one.

        Raises ValueError where the layers cannot have a width that it compares with.
        """


@config
class Standard(Parametrization):
    """Initial values by fan-in and depth, and one learning rate at all sizes: the best one falls as a model grows."""

    @property
    def label(self) -> str:
        return "standard"

    def applied(self, cfg: ModelConfig) -> ModelConfig:
        return cfg

    def scales(self, cfg: ModelConfig, build: Build) -> dict[str, Scale]:
        return {}


@config
class MuP(Parametrization):
    """Maximal update parametrisation (Yang et al. 2022): a step moves every layer's output as far at any width.

    At ``base_width`` it is the standard one, bit for bit. What a wider model multiplies, with m = width / base width of
    each dimension, is decided by which dimensions of a parameter grow with the width:

    ========================  ===========  ============  =======  ========
    grows                     initial sd   Adam's rate   eps      Muon's rate
    ========================  ===========  ============  =======  ========
    fan-in and fan-out        m^-1/2       1 / m         1 / m    of singular values sqrt(out / in)
    fan-in alone              1 / m        1 / m         1        likewise
    the same, ``features``    m^-1/2       1 / m                  likewise
    fan-out alone, vectors    1            1             1 / m    likewise
    neither                   1            1             1        1
    tables (embedding, head)  1            1             1 / m
    ========================  ===========  ============  =======  ========

    and hidden states by 1 / m on their way to the head, whose table may then be the embedding's. Weight decay takes the
    same share of a weight at any width. The width of a head stays, so attention keeps its 1 / sqrt(head_dim).
    """

    base_width: PositiveInt

    @property
    def label(self) -> str:
        return f"mup, base width {self.base_width}"

    def depth(self, cfg: ModelConfig) -> float:
        """How many times the layers of the base there are."""
        return 1.0

    def applied(self, cfg: ModelConfig) -> ModelConfig:
        m = cfg.shape[1] / self.base_width
        return dataclasses.replace(cfg, readout=cfg.readout * _table(m, cfg) / m)

    def scales(self, cfg: ModelConfig, build: Build) -> dict[str, Scale]:
        model = build(cfg)
        try:
            base, twice = (
                _dims(build(dataclasses.replace(cfg, d_model=k * self.base_width))) for k in (1, 2)
            )
        except ValueError as error:
            raise ValueError(f"parametrization.base_width={self.base_width}: {error}") from None
        role = roles(model)
        found = {
            name: _wider(role[name], dims, base[name], twice[name], cfg)
            for name, dims in _dims(model).items()
        }
        depth = self.depth(cfg)
        return found | {name: _deeper(role[name], found[name], block, depth) for name, block in _owned(model)}


@config
class CompleteP(MuP):
    """MuP that depth does not disturb either (Dey et al. 2025, with alpha = 1).

    With l = layers / ``base_depth`` what a layer adds to the residual stream is divided by l. The division is taken
    into the weights that write there: they begin and move by 1 / l of what they would; the gradients of a layer's other
    weights, and so their eps, are smaller by l.
    """

    base_depth: PositiveInt

    @property
    def label(self) -> str:
        return f"completep, base width {self.base_width}, base depth {self.base_depth}"

    def depth(self, cfg: ModelConfig) -> float:
        return cfg.shape[0] / self.base_depth


class Dims(NamedTuple):
    """Fan-in, and fan-out by part, as far as they can grow: a token picks a row of a table, which is a fan-in of 1."""

    into: int
    out: tuple[int, ...]


def _dims(model: nn.Module) -> dict[str, Dims]:
    return {name: _dims_of(role, model.get_parameter(name)) for name, role in roles(model).items()}


def _dims_of(role: Role, parameter: nn.Parameter) -> Dims:
    if role.kind == "matrix":
        return Dims(parameter.shape[-1], role.splits or (parameter.shape[-2],))
    return Dims(1, (parameter.shape[0 if role.kind == "vector" else -1],))


def _wider(role: Role, dims: Dims, base: Dims, twice: Dims, cfg: ModelConfig) -> Scale:
    """Of a parameter with ``dims``, which are ``base`` at the base's width and ``twice`` at two times that."""
    into = dims.into / base.into
    out = tuple(own / small for own, small in zip(dims.out, base.out, strict=True))
    if role.kind in ("embedding", "head"):
        (m,) = out
        table = _table(m, cfg)
        # m^1/2 takes back the standard's fan-in, which is none of a table's
        return Scale(init=(m**0.5 / table,), rate=1 / table, gradient=table / m, into=into, out=out)
    # a few sums of many terms, where one step in each term moves a sum by as many
    narrows = tuple(
        base.into < twice.into and small == large for small, large in zip(base.out, twice.out, strict=True)
    )
    init = tuple(into**-0.5 if narrow and not role.features else 1.0 for narrow in narrows)
    return Scale(init=init, rate=1 / into, gradient=1 / max(out), into=into, out=out)


def _table(m: float, cfg: ModelConfig) -> float:
    """What the model itself multiplies a table's rows by, beyond the base: sqrt(d_model) where it scales embeddings."""
    return m**0.5 if cfg.embed_scale else 1.0


def _owned(model: nn.Module) -> Iterator[tuple[str, Block]]:
    """Every parameter of a block, by its name in the model."""
    for prefix, module in model.named_modules():
        if isinstance(module, Block):
            for name, _ in module.named_parameters():
                yield f"{prefix}.{name}", module


def _deeper(role: Role, scale: Scale, block: Block, depth: float) -> Scale:
    """Of a block's parameter, where the base has so many times fewer blocks."""
    normed = block.after is not None and role.kind == "matrix"  # then the gain of the norm is what writes
    if not role.residual or normed:
        undone = depth**0.5 if role.residual else 1.0  # the standard divides by sqrt(2 n_layers)
        return scale._replace(init=tuple(f * undone for f in scale.init), gradient=scale.gradient / depth)
    share = 1 / depth if role.kind == "vector" else depth**-0.5
    init = tuple(f * share for f in scale.init)
    return scale._replace(init=init, rate=scale.rate / depth, branch=1 / depth)
