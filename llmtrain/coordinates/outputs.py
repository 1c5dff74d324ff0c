"""What every layer of a model puts out for one batch, by name: what a step is seen to move."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmtrain.nn.model import Block, Model, TokenHead
from llmtrain.nn.roles import Role
from llmtrain.nn.routing import routers
from llmtrain.objectives.base import Task
from llmtrain.types import Hidden


class Spot(NamedTuple):
    """A place in a model where numbers can be seen."""

    name: str  # with the layer, as in trunk.blocks.1.mixer.qkv.0
    kind: str  # without, as in Attention.qkv.0
    branch: bool = False  # what a layer adds to the residual stream, which a deeper model divides
    behind: tuple[int, int] | None = None  # how many blocks, of how many that the stack has

    def deep(self, least: int) -> str | None:
        """Its name among those as deep in stacks of other depths; none where one of ``least`` blocks has none."""
        if self.behind is None:
            return self.name
        blocks, of = self.behind
        at, between = divmod(blocks * least, of)
        return None if between else re.sub(r"\.blocks\.\d+", f" behind {at} of {least}", self.name)


Seen = dict[Spot, Tensor]


@torch.no_grad()
def outputs(task: Task, batch: Any) -> Seen:
    """Outputs of embedding, projections, routers, layers, residual stream, last norm, head and loss of a forward pass.

    A fused projection is seen part by part: in ``Attention.qkv`` 0, 1 and 2 are queries, keys and values, in
    ``SSM.in_proj`` 0 is the gate, 1 x, 2 B, 3 C, and what follows dt.
    """
    task.eval()
    seen: Seen = {}
    with _watched(task.model, seen):
        loss = task(batch)
    seen[Spot("loss", "loss of each row")] = loss.nats / loss.counts.clamp_min(1)
    task.train()
    return seen


@contextmanager
def _watched(model: Model, seen: Seen) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in _hooks(model, seen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(model: Model, seen: Seen) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
    yield model.embed, _keep(seen, Spot("embed", "embedding"))
    for i, stack in enumerate(reversed(model.stacks())):
        yield stack.norm, _keep(seen, Spot(("trunk", "encoder")[i] + ".norm", "last norm"))
    yield model, _logits(model, seen)
    if not isinstance(model.head, TokenHead):
        yield model.head, _keep(seen, Spot("head", "head"))
    routing = {id(module) for module in routers(model)}
    for prefix, block, before, of in _blocks(model):
        at = before, of
        yield block, _keep(seen, Spot(prefix, "residual stream", behind=(before + 1, of)))
        for part in ("mixer", "cross", "mlp"):
            layer = getattr(block, part)
            if layer is None:
                continue
            kind = type(layer).__name__.removesuffix("Module")
            yield layer, _keep(seen, Spot(f"{prefix}.{part}", kind, True, at))
            if id(layer) in routing:
                yield layer, _route(seen, Spot(f"{prefix}.{part}.router", f"{kind}.router", behind=at))
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear) and name != "router":
                    spot = Spot(f"{prefix}.{part}.{name}", f"{kind}.{name}", behind=at)
                    yield module, _parts(seen, spot, module)


def _blocks(model: Model) -> Iterator[tuple[str, Block, int, int]]:
    for name, stack in (("encoder", model.encoder), ("trunk", model.trunk)):
        for i, block in enumerate(stack.blocks if stack is not None else ()):
            assert stack is not None
            yield f"{name}.blocks.{i}", block, i, len(stack.blocks)


def _keep(seen: Seen, spot: Spot) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        seen[spot] = out.h if isinstance(out, Hidden) else out

    return hook


def _parts(seen: Seen, spot: Spot, linear: nn.Linear) -> Callable[..., None]:
    roles: Any = getattr(linear, "roles", {"weight": Role("matrix")})
    role: Role = roles["weight"]

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        for i, part in enumerate(out.split(role.splits, -1) if role.splits else (out,)):
            suffix = f".{i}" if role.splits else ""
            seen[Spot(spot.name + suffix, spot.kind + suffix, role.residual, spot.behind)] = part

    return hook


def _route(seen: Seen, spot: Spot) -> Callable[..., None]:
    def hook(module: Any, args: Any, out: Any) -> None:
        seen[spot] = module.logits(args[0])

    return hook


def _logits(model: Model, seen: Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Hidden) -> None:
        if isinstance(model.head, TokenHead):
            seen[Spot("head", "head")] = model.head(out.h)

    return hook
