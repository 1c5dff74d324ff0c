"""A ladder: one trunk at a constant rate, and at each horizon a branch of it that decays (Hägele et al. 2024)."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from llmtrain.sweep.cells import Cell, Role

UNITS = 20  # of the shortest horizon: lengths and branch points are multiples of one of these


def ladder(rungs: Sequence[Cell], *, decay: float, warmup: float) -> list[Cell]:
    """Of cells of a size and seed at several lengths: their trunk, a branch for each, a fresh run of the shortest.

    ``decay`` is the share of its horizon that a branch decays for; ``warmup`` that of the shortest horizon, the same
    steps for all. The trunk ends where its last branch begins.
    """
    found = []
    for _, group in itertools.groupby(sorted(rungs, key=_size), key=_size):
        found += list(_of_one_size(sorted(group, key=lambda cell: cell.steps), decay, warmup))
    return found


def fresh(cell: Cell, *, decay: float, warmup: float) -> Cell:
    """``cell`` by the recipe of a branch, but from its first step; both are shares of its own length."""
    steps = (max(1, round(share * cell.steps)) for share in (warmup, decay))
    words = (
        "schedule=wsd",
        *(f"schedule.{key}={n}" for key, n in zip(("warmup", "decay"), steps, strict=True)),
    )
    return dataclasses.replace(cell, words=(*cell.words, *words))


def _of_one_size(rungs: Sequence[Cell], decay: float, warmup: float) -> Iterator[Cell]:
    shortest, longest = rungs[0], rungs[-1]
    unit = max(1, shortest.steps // UNITS)
    warming = max(1, round(warmup * shortest.steps))
    lengths = [max(2, round(rung.steps / unit)) for rung in rungs]  # in units
    decays = [max(1, round(decay * n)) for n in lengths]
    trunk = f"{longest.series}-trunk-n{longest.n}-seed{longest.seed}"
    last = max(n - d for n, d in zip(lengths, decays, strict=True)) * unit
    constant = ("schedule=constant", f"schedule.warmup={warming}")
    saved = (f"checkpoint.every={unit}", f"checkpoint.keep_every={unit}")
    yield _with(longest, Role.TRUNK, trunk, last, (*constant, *saved, f"labels.trunk={trunk}"))
    for rung, n, d in zip(rungs, lengths, decays, strict=True):
        falling = ("schedule=wsd", f"schedule.warmup={warming}", f"schedule.decay={d * unit}")
        branch = _with(
            rung, Role.BRANCH, f"{trunk}-h{n * unit}", n * unit, (*falling, f"labels.trunk={trunk}")
        )
        branch = dataclasses.replace(branch, origin=f"{trunk}@{(n - d) * unit}")
        yield dataclasses.replace(branch, seconds=branch.seconds and branch.seconds * branch.own_share)
        if rung is shortest:
            yield _with(rung, Role.CHECK, f"{trunk}-fresh-h{n * unit}", n * unit, falling)


def _with(cell: Cell, role: Role, name: str, steps: int, words: tuple[str, ...]) -> Cell:
    """``cell`` at another length; its counts go with it."""
    share = steps / cell.steps
    others = tuple(word for word in cell.words if not word.startswith("steps="))
    return dataclasses.replace(
        cell,
        id=name,
        role=role,
        steps=steps,
        tokens=round(cell.tokens * share),
        flops=round(cell.flops * share),
        epochs=cell.epochs * share,
        seconds=cell.seconds and cell.seconds * share,
        words=(*others, f"steps={steps}", *words),
    )


def _size(cell: Cell) -> tuple[str, int, int]:
    return cell.series, cell.n, cell.seed
