"""The one optimiser that Lightning sees: guard, clipping, schedule and average around several update rules."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain import faults
from llmtrain.errors import ConfigError
from llmtrain.optim.ema import WeightAverage
from llmtrain.optim.gradients import global_norm, scale
from llmtrain.optim.guard import Guard, Judge, Verdict
from llmtrain.place import local


class StepReport(NamedTuple):
    """What the last step did."""

    losses: tuple[float, ...]  # by rank
    norms: tuple[float, ...]  # by rank, of all gradients together before clipping; equal but for faults
    lr: float  # of the first rule
    verdict: Verdict

    @property
    def loss(self) -> float:
        """Of all ranks."""
        return sum(self.losses) / len(self.losses)

    @property
    def grad_norm(self) -> float:
        """The first that is not finite, if there is one."""
        return next((norm for norm in self.norms if not math.isfinite(norm)), self.norms[0])

    @property
    def updated(self) -> bool:
        return self.verdict.taken


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

    The guard judges loss and gradient of all ranks before anything has moved. A step that is skipped leaves weights,
    moments and average bit for bit and only advances step and schedule. One that the guard answers with "stop" or
    "rollback" changes nothing at all: ``last.verdict`` says so, and the rest is the caller's.

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
        guard: Guard,
    ) -> None:
        # the rules and torch hold the same dicts, so that a rate written here is the rate that a rule reads
        super().__init__([group for rule in rules for group in rule.groups], {})
        self.rules = rules
        self.weights = weights
        self.factor = factor
        self.clip = clip
        self.judge = Judge(guard)
        self.average = None if ema is None else WeightAverage(weights, ema)
        self.steps = 0  # steps taken or skipped: where the schedule is
        self.updates = 0  # steps taken: how many gradients are in the moments
        self._set_rates()
        self.last = StepReport((0.0,), (0.0,), lr=self.param_groups[0]["lr"], verdict=Verdict("skip"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` (forward and backward), then update or not; returns what the closure returned: the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [p.grad for p in self.weights.values() if p.grad is not None]
        for grad in map(local, grads[:1]):  # of a sharded one this rank's part: only one rank may be due
            grad.copy_(faults.poisoned(grad, "grad", self.steps))  # itself, unless a fault is due
        losses, norms = _of_all_ranks(loss, global_norm(grads))
        verdict = self.judge.judge(losses, norms)
        self._set_rates()
        if verdict.taken:
            self._update(grads, norms[0])
        self.last = StepReport(losses, norms, self.param_groups[0]["lr"], verdict)
        if verdict.taken or verdict.action == "skip":
            self.steps += 1
        return loss

    def tensors(self) -> dict[str, Tensor]:
        """All state that is tensors, as ``adamw.exp_avg.<parameter>`` and the like; live, so copy what is kept."""
        states = [rule.tensors() for rule in self.rules] + ([self.average.tensors()] if self.average else [])
        return {name: tensor for state in states for name, tensor in state.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what another's ``tensors`` gave; of sharded ones, this rank's parts.

        ConfigError, before anything has moved, at the first name, shape or type that differs.
        """
        own = {name: local(tensor) for name, tensor in self.tensors().items()}
        for name in sorted(own.keys() | tensors.keys()):
            is_, other = _describe(own.get(name)), _describe(tensors.get(name))
            if is_ != other:
                raise ConfigError(
                    f"the saved optimiser state does not fit: {name} is {other} in it and {is_} here; "
                    "continue with the model and optim of the run that saved it, or take only its weights"
                )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def counters(self) -> dict[str, Any]:
        """All state that is not tensors, as JSON."""
        return {"steps": self.steps, "updates": self.updates, "guard": self.judge.values()}

    def load_counters(self, counters: Mapping[str, Any]) -> None:
        self.steps, self.updates = counters["steps"], counters["updates"]
        if "guard" in counters:  # not in what was saved before there was one
            self.judge.load_values(counters["guard"])
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
            scale(grads, self.clip / norm)
        if self.average and self.updates == 0:
            self.average.start()  # not when built: the weights may have been loaded since
        for rule in self.rules:
            rule.update()
        if self.average:
            self.average.update()
        self.updates += 1


def _of_all_ranks(loss: object, norm: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Every rank's loss and gradient norm, on every rank: one collective, one wait for the device."""
    own = torch.stack((loss.detach() if isinstance(loss, Tensor) else norm.new_zeros(()), norm)).double()
    if dist.is_available() and dist.is_initialized():
        every = own.new_zeros(dist.get_world_size(), 2)
        every[dist.get_rank()] = own
        dist.all_reduce(every)  # a sum with zeros, which leaves infinities and NaN what they are
    else:
        every = own[None]
    losses, norms = every.T.tolist()
    return tuple(losses), tuple(norms)


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
