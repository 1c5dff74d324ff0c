"""Many continuations of one context: it is read once, and what its tokens left is shared by all that follow it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtrain.evaluation.lines import TOKENS, Said, predicted, stream
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Beginning


@torch.no_grad()
def read_shared(model: Model, begun: Beginning, continuations: Sequence[tuple[int, ...]]) -> list[Said]:
    """What the model says of the tokens of each, all of which follow ``begun``; in their order."""
    device = model.embed.weight.device
    ids, n_read = begun.source, len(begun.prompt)
    source = None if ids is None else model.encode(stream([tuple(ids)], [len(ids)], device))
    prompt = stream([tuple(begun.prompt)], [begun.prefix], device)
    h, state = model.step(prompt, model.init_state(1), source)
    last = h[:, -1:]
    alike: dict[int, list[int]] = {}
    for i, continuation in enumerate(continuations):
        alike.setdefault(len(continuation), []).append(i)
    said: dict[int, Said] = {}
    for n, chosen in alike.items():
        n_rows = max(1, TOKENS // (n_read + n))
        for rows in (chosen[i : i + n_rows] for i in range(0, len(chosen), n_rows)):
            h = last.expand(len(rows), -1, -1)
            if n > 1:
                before = stream([continuations[i][:-1] for i in rows], [0] * len(rows), device, at=n_read)
                after, _ = model.step(before, repeated(state, len(rows)), repeated(source, len(rows)))
                h = torch.cat((h, after), 1)
            targets = torch.tensor([continuations[i] for i in rows], device=device)
            nats, likeliest = predicted(model.head, h.flatten(0, 1), targets.flatten())
            parts = zip(rows, np.split(nats, len(rows)), np.split(likeliest, len(rows)), strict=True)
            said |= {i: Said(*part) for i, *part in parts}
    return [said[i] for i in range(len(continuations))]


def repeated(state: Any, rows: int) -> Any:
    """A state of one row, or whatever holds its tensors, as that of many; nothing is copied."""
    if isinstance(state, Tensor):
        return state.expand(rows, *state.shape[1:])
    if isinstance(state, tuple | list):
        parts = [repeated(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state
