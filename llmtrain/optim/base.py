"""What every optimiser's config has in common, and how it becomes the one optimiser of a run."""

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Annotated, NamedTuple

from annotated_types import Ge, Gt, Lt
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from llmtrain.config import config
from llmtrain.nn.roles import Role, Scale, roles, scales
from llmtrain.optim.composite import CompositeOptimizer, Rule
from llmtrain.optim.guard import Guard
from llmtrain.optim.schedules import Schedule

Decay = Annotated[float, Ge(0), Lt(1)]  # the share of the old that a running average keeps each step


class Named(NamedTuple):
    """A parameter with what an optimiser needs to know of it."""

    name: str
    weight: nn.Parameter
    role: Role
    scale: Scale = Scale()

    @property
    def decays(self) -> bool:
        """Weight decay is for matrices, tables of embeddings and heads included; gains and biases are left alone."""
        return self.role.kind != "vector"


def by_mesh(named: list[Named]) -> list[list[Named]]:
    """The parameters in groups that lie on the same ranks: no operation takes tensors of two meshes."""
    groups: dict[DeviceMesh | None, list[Named]] = defaultdict(list)
    for one in named:
        groups[one.weight.device_mesh if isinstance(one.weight, DTensor) else None].append(one)
    return list(groups.values())


@config
class Optim(ABC):
    """An optimiser, and an average of the weights if one is wanted."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat = (
        0.1  # decoupled: a weight loses lr * weight_decay of itself a step, whatever its scale
    )
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat | None = 1.0  # the largest norm of all gradients together; None leaves them
    ema: Annotated[float, Gt(0), Lt(1)] | None = (
        None  # what the averaged weights keep a step; None keeps no average
    )

    @abstractmethod
    def rules(self, named: list[Named]) -> list[Rule]:
        """Share the parameters out among update rules; the first rule's rate is the one that is reported."""

    def build(
        self, model: nn.Module, schedule: Schedule, horizon: int, guard: Guard | None = None
    ) -> CompositeOptimizer:
        """The optimiser of ``model``'s trainable parameters, for a run of ``horizon`` steps under ``guard``.

        Built once the parameters are where they stay: after moving to the device and after sharding. Raises ConfigError
        if the schedule does not fit in the horizon.
        """
        schedule.check(horizon)
        role, scale = roles(model), scales(model)
        named = [
            Named(name, p, role[name], scale[name]) for name, p in model.named_parameters() if p.requires_grad
        ]
        return CompositeOptimizer(
            self.rules(named),
            {n.name: n.weight for n in named},
            factor=lambda step: schedule.factor(step, horizon),
            clip=self.clip,
            ema=self.ema,
            guard=guard or Guard(),
        )
