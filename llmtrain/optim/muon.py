"""Muon for matrices: the momentum, made orthogonal, is the step; AdamW for embeddings, head and vectors."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmtrain.config import config
from llmtrain.nn.roles import Scale
from llmtrain.optim.adamw import AdamWRule
from llmtrain.optim.base import Decay, Named, Optim, by_mesh
from llmtrain.optim.composite import Rule
from llmtrain.place import gathered, spread

# Keller Jordan's coefficients: steepest at 0, so that 5 steps lift small singular values too
QUINTIC = (3.4445, -4.7750, 2.0315)
BATCH_ELEMENTS = 1 << 26  # of one stack of matrices, so that memory does not grow with depth


@config
class Muon(Optim):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024), ``lr`` being the rate of matrices.

    ``scale`` makes one rate serve all shapes: "spectral" multiplies an update by sqrt(max(1, out / in)), Jordan's rule;
    "rms" by 0.2 sqrt(max(out, in)), which gives it the size of AdamW's, so that AdamW's lr and weight_decay can be kept
    (Liu et al. 2025). ``betas`` and ``eps`` are AdamW's.

    Newton-Schulz costs up to 6 ``ns_steps`` x the shorter side in FLOPs a parameter, where training costs 6 x the
    tokens of a step: with few tokens a step it is the larger part.
    """

    adamw_lr: PositiveFloat
    momentum: Decay = 0.95
    nesterov: bool = True
    ns_steps: PositiveInt = 5
    dtype: Literal["float32", "bfloat16"] = "float32"  # of Newton-Schulz; float64 weights stay float64
    scale: Literal["spectral", "rms"] = "spectral"

    def rules(self, named: list[Named]) -> list[Rule]:
        matrices = [n for n in named if n.role.kind == "matrix"]
        rest = [n for n in named if n.role.kind != "matrix"]
        muon: list[Rule] = [MuonRule(group, self) for group in by_mesh(matrices)]
        adamw = [AdamWRule(group, self, lr=self.adamw_lr, fused=True) for group in by_mesh(rest)]
        return muon + adamw


class MuonRule(Rule):
    """Matrices and stacks of them; a fused one, such as q, k and v, moves as its parts would."""

    def __init__(self, named: Sequence[Named], config: Muon) -> None:
        self.named = named
        self.config = config
        self.momenta = {n.name: torch.zeros_like(n.weight) for n in named}
        weights = [n.weight for n in named]
        self.groups = [
            {"params": weights, "lr": config.lr, "base_lr": config.lr, "weight_decay": config.weight_decay}
        ]

    def update(self) -> None:
        lr: float = self.groups[0]["lr"]
        moving = [n for n in self.named if n.weight.grad is not None]
        directions = self._directions(moving)
        # as much of what is sharded is whole at a time as one stack may hold; what was whole before takes no more
        sizes = [n.weight.numel() if isinstance(n.weight, DTensor) else 0 for n in moving]
        for batch in _batches(list(range(len(moving))), sizes):
            updates = self._orthogonal([moving[i] for i in batch], [directions[i] for i in batch])
            weights: list[Tensor] = [moving[i].weight for i in batch]
            torch._foreach_mul_(weights, 1 - lr * self.config.weight_decay)
            torch._foreach_add_(weights, updates, alpha=-lr)

    def tensors(self) -> dict[str, Tensor]:
        return {f"muon.momentum.{name}": momentum for name, momentum in self.momenta.items()}

    def resume(self, updates: int) -> None:
        pass  # the momentum is all there is: it has no correction that depends on the count

    def _directions(self, moving: Sequence[Named]) -> Sequence[Tensor]:
        beta = self.config.momentum
        grads = [n.weight.grad for n in moving if n.weight.grad is not None]
        momenta = [self.momenta[n.name] for n in moving]
        torch._foreach_lerp_(momenta, grads, 1 - beta)
        return torch._foreach_lerp(grads, momenta, beta) if self.config.nesterov else momenta

    def _orthogonal(self, moving: Sequence[Named], directions: Sequence[Tensor]) -> list[Tensor]:
        """The update of each weight at a rate of 1: its parts orthogonal each by itself, scaled for their shape."""
        parts = [_parts(n, d) for n, d in zip(moving, directions, strict=True)]
        updates = iter(
            orthogonalize([p for ps in parts for p in ps], steps=self.config.ns_steps, dtype=self._dtype)
        )
        scaled = [
            [u.mul_(self._rate(n.scale, i, *u.shape[-2:])) for i, u in enumerate(islice(updates, len(ps)))]
            for n, ps in zip(moving, parts, strict=True)
        ]
        return [
            _like(n, us[0] if len(us) == 1 else torch.cat(us, dim=-2))
            for n, us in zip(moving, scaled, strict=True)
        ]

    def _rate(self, scale: Scale, part: int, out: int, into: int) -> float:
        """What the part would have at the base, and what its growth makes of that."""
        return self._scale(out / scale.out[part], into / scale.into) * scale.singular(part)

    def _scale(self, out: float, into: float) -> float:
        if self.config.scale == "spectral":
            return math.sqrt(max(1.0, out / into))
        return 0.2 * math.sqrt(max(out, into))

    @property
    def _dtype(self) -> torch.dtype:
        exact = any(n.weight.dtype == torch.float64 for n in self.named)
        return torch.float64 if exact else getattr(torch, self.config.dtype)


def orthogonalize(matrices: Sequence[Tensor], *, steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Each matrix [out, in], or each of a stack [E, out, in], with its singular values pushed to about 1; new tensors.

    Matrices of one shape, lying or standing, go through Newton-Schulz together, in batches of a bounded size.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, m in enumerate(matrices):
        by_shape[min(m.shape[-2:]), max(m.shape[-2:])].append(i)
    done: dict[int, Tensor] = {}
    for (short, long), members in by_shape.items():
        for batch in _batches(members, [matrices[i].numel() for i in members]):
            lying = [
                (matrices[i].mT if _stands(matrices[i]) else matrices[i]).reshape(-1, short, long)
                for i in batch
            ]
            stack = newton_schulz(torch.cat(lying), steps=steps, dtype=dtype)
            for i, x in zip(batch, stack.split([len(m) for m in lying]), strict=True):
                m = matrices[i]
                done[i] = (x.mT if _stands(m) else x).reshape(m.shape)
    return [done[i] for i in range(len(matrices))]


def newton_schulz(
    x: Float[Tensor, "N short long"],
    *,
    steps: int,
    dtype: torch.dtype,
    coefficients: tuple[float, float, float] = QUINTIC,
) -> Float[Tensor, "N short long"]:
    """U V^T of each U S V^T, nearly: ``steps`` of the odd polynomial a s + b s^3 + c s^5 on the singular values.

    With the default coefficients 5 steps bring all above 0.002 of the matrix's norm to between 0.68 and 1.21: not
    exact, but quick, and as good a direction (Jordan et al. 2024). Products are in ``dtype``; the result is of the
    type of ``x``.
    """
    a, b, c = coefficients
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    y = (x / norm.clamp(min=1e-7)).to(dtype)  # a matrix without gradient stays 0
    for _ in range(steps):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.to(x.dtype)


def _stands(matrix: Tensor) -> bool:
    return matrix.shape[-2] > matrix.shape[-1]


def _batches(members: list[int], sizes: list[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    filled = 0
    for member, size in zip(members, sizes, strict=True):
        if batch and filled + size > BATCH_ELEMENTS:
            yield batch
            batch, filled = [], 0
        batch.append(member)
        filled += size
    yield batch


def _parts(named: Named, direction: Tensor) -> tuple[Tensor, ...]:
    """The matrices that a weight is fused of, gathered from all ranks: a shard has other singular values."""
    splits = named.role.splits
    whole = gathered(direction, splits) if isinstance(direction, DTensor) else direction
    return whole.split(splits or whole.shape[-2], dim=-2)


def _like(named: Named, whole: Tensor) -> Tensor:
    """This rank's share of ``whole``, which every rank has computed, laid out like the weight."""
    weight: Tensor = named.weight
    return spread(whole, weight, named.role.splits) if isinstance(weight, DTensor) else whole
