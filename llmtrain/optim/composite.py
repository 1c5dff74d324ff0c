"""The one optimiser that Lightning sees: guard, clipping, schedule and average around several update rules."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain import faults
from llmtrain.errors import ConfigError, NumbersError
from llmtrain.optim.ema import WeightAverage
from llmtrain.optim.gradients import first_nonfinite, global_norm


class StepReport(NamedTuple):
    """What the last step did."""

    grad_norm: float  # of all gradients together, before clipping
    lr: float  # of the first rule
    finite: bool  # on every rank
    updated: bool


class Rule(ABC):
    """How some of the parameters move by their gradients, with the state that this takes."""

    groups: list[dict[str, Any]]  # torch's parameter groups, with "base_lr"; the composite keeps "lr" current

    @abstractmethod
    def update(self) -> None:
        """Move the parameters that have a gradient, each by the "lr" of its group."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The state itself, not a copy, under names that tell rule, quantity and parameter."""

    @abstractmethod
    def resume(self, updates: int) -> None:
        """Continue as after so many updates; ``tensors`` are restored apart."""


class CompositeOptimizer(torch.optim.Optimizer):
    """Several rules as one optimiser, whose step either happens in whole or not at all.

    A step whose loss or gradient is not finite on any rank stops the run with NumbersError before anything has
    moved, or, under ``on_nonfinite="skip"``, leaves weights, moments and average bit for bit and only advances step
    and schedule.

    ``factor`` gives, by step, what every base rate is multiplied by. A checkpoint takes ``tensors`` and ``counters``.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        weights: Mapping[str, nn.Parameter],
        *,
        factor: Callable[[int], float],
        clip: float | None,
        ema: float | None,
        on_nonfinite: Literal["stop", "skip"],
    ) -> None:
        # the rules and torch hold the same dicts, so that a rate written here is the rate that a rule reads
        super().__init__([group for rule in rules for group in rule.groups], {})
        self.rules = rules
        self.weights = weights
        self.factor = factor
        self.clip = clip
        self.on_nonfinite = on_nonfinite
        self.average = None if ema is None else WeightAverage(weights, ema)
        self.steps = 0  # steps taken or skipped: where the schedule is
        self.updates = 0  # steps taken: how many gradients are in the moments
        self._set_rates()
        self.last = StepReport(grad_norm=0.0, lr=self.param_groups[0]["lr"], finite=True, updated=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` (forward and backward), then update or not; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [p.grad for p in self.weights.values() if p.grad is not None]
        for grad in grads[:1]:
            grad.copy_(faults.poisoned(grad, "grad", self.steps))  # itself, unless a fault is due
        finite, norm = _agree(global_norm(grads), loss)
        if not finite and self.on_nonfinite == "stop":
            raise NumbersError(self._complaint(norm, loss))
        self._set_rates()
        if finite:
            self._update(grads, norm)
        self.last = StepReport(norm, self.param_groups[0]["lr"], finite, updated=finite)
        self.steps += 1
        return loss

    def tensors(self) -> dict[str, Tensor]:
        """All state that is tensors, as ``adamw.exp_avg.<parameter>`` and the like; live, so copy what is kept."""
        states = [rule.tensors() for rule in self.rules] + ([self.average.tensors()] if self.average else [])
        return {name: tensor for state in states for name, tensor in state.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what another's ``tensors`` gave.

        ConfigError, before anything has moved, at the first name, shape or type that differs.
        """
        own = self.tensors()
        for name in sorted(own.keys() | tensors.keys()):
            is_, other = _describe(own.get(name)), _describe(tensors.get(name))
            if is_ != other:
                raise ConfigError(
                    f"the saved optimiser state does not fit: {name} is {other} in it and {is_} here; "
                    "continue with the model and optim of the run that saved it, or take only its weights"
                )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def counters(self) -> dict[str, int]:
        """All state that is not tensors."""
        return {"steps": self.steps, "updates": self.updates}

    def load_counters(self, counters: Mapping[str, int]) -> None:
        self.steps, self.updates = counters["steps"], counters["updates"]
        for rule in self.rules:
            rule.resume(self.updates)
        self._set_rates()

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within, the parameters hold the averaged weights; themselves, where no average is kept or none has begun."""
        if self.average is None or self.updates == 0:
            yield
        else:
            with self.average.lent():
                yield

    def _set_rates(self) -> None:
        factor = self.factor(self.steps)
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _update(self, grads: list[Tensor], norm: float) -> None:
        if self.clip is not None and norm > self.clip:
            torch._foreach_mul_(grads, self.clip / norm)
        if self.average and self.updates == 0:
            self.average.start()  # not when built: the weights may have been loaded since
        for rule in self.rules:
            rule.update()
        if self.average:
            self.average.update()
        self.updates += 1

    def _complaint(self, norm: float, loss: object) -> str:
        name = first_nonfinite(self.weights)
        where = f"first in the gradient of {name}" if name else "no gradient of this rank has it"
        shown = f"{float(loss.detach()):g}" if isinstance(loss, Tensor) else "unknown"
        return (
            f"step {self.steps}: loss {shown}, gradient norm {norm:g}, {where}; nothing was updated: "
            "lower optim.lr, or pass over such steps with optim.on_nonfinite=skip"
        )


def _agree(norm: Tensor, loss: object) -> tuple[bool, float]:
    """Whether gradient and loss are finite on every rank, and the norm: one collective, one wait for the device."""
    finite = torch.isfinite(norm)
    if isinstance(loss, Tensor):
        finite = finite & torch.isfinite(loss.detach()).all()
    flag = finite.to(norm.dtype)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    everywhere, value = torch.stack((flag, norm)).tolist()
    return everywhere == 1, value


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
