"""AdamW for all parameters, or for those that another rule leaves over."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmtrain.config import config
from llmtrain.optim.base import Named, Optim, by_mesh
from llmtrain.optim.composite import Rule


@config
class AdamW(Optim):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    fused: bool = True  # one kernel for a whole group; false is torch's loop over tensors, the reference

    def rules(self, named: list[Named]) -> list[Rule]:
        return [AdamWRule(group, self, lr=self.lr, fused=self.fused) for group in by_mesh(named)]


class AdamWRule(Rule):
    """``torch.optim.AdamW``, its moments made at once: a checkpoint of step 0 has the tensors that any other has."""

    def __init__(self, named: Iterable[Named], optim: Optim, *, lr: float, fused: bool) -> None:
        self.names = {n.name: n.weight for n in named}
        self.groups = _groups(named, lr=lr, weight_decay=optim.weight_decay, eps=optim.eps)
        self._adamw = torch.optim.AdamW(
            self.groups, lr=lr, betas=optim.betas, eps=optim.eps, foreach=False, fused=fused
        )
        for p in self.names.values():
            self._adamw.state[p] = {
                "step": torch.zeros((), device=p.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def update(self) -> None:
        self._adamw.step()

    def tensors(self) -> dict[str, Tensor]:
        state = self._adamw.state
        return {
            f"adamw.{key}.{name}": state[p][key]
            for key in ("exp_avg", "exp_avg_sq")
            for name, p in self.names.items()
        }

    def resume(self, updates: int) -> None:
        for p in self.names.values():
            self._adamw.state[p]["step"].fill_(updates)


def _groups(named: Iterable[Named], *, lr: float, weight_decay: float, eps: float) -> list[dict[str, Any]]:
    """What decays, then what does not, each in groups of one scale; a smaller rate takes as much of a weight away."""
    together: dict[tuple[bool, float, float], list[Tensor]] = {}
    for n in sorted(named, key=lambda n: not n.decays):
        together.setdefault((n.decays, n.scale.rate, n.scale.gradient), []).append(n.weight)
    return [
        {
            "params": weights,
            "lr": lr * rate,
            "base_lr": lr * rate,
            "weight_decay": weight_decay / rate if decays else 0.0,
            "eps": eps * gradient,
        }
        for (decays, rate, gradient), weights in together.items()
    ]
