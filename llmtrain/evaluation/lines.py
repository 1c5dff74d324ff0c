"""What a model predicts at single places of many rows: of any length, batched, and those that are alike read once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmtrain.nn.base import HeadModule
from llmtrain.nn.model import Model
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.loss import chunk_elements
from llmtrain.types import Seq

TOKENS = 4096  # positions of a batch: more are no faster on a CPU


class Line(NamedTuple):
    """A row that is one document or a part of one, and what is asked of it."""

    ids: tuple[int, ...]
    at: tuple[int, ...]  # positions whose outputs predict
    targets: tuple[int, ...]  # a token for each of them
    prefix: int = 0  # tokens that the whole row sees
    source: tuple[int, ...] | None = None  # what an encoder reads


class Said(NamedTuple):
    nats: Float[np.ndarray, " n"]  # negative log-likelihood of each target
    likeliest: Bool[np.ndarray, " n"]  # whether no other token was likelier


class _Row(NamedTuple):
    ids: tuple[int, ...]
    prefix: int
    source: tuple[int, ...] | None


@torch.no_grad()
def read(model: Model, lines: Sequence[Line]) -> list[Said]:
    """What the model says of each line, in their order; it must be ready to evaluate."""
    asking: dict[_Row, list[int]] = {}
    for i, line in enumerate(lines):
        asking.setdefault(_Row(line.ids, line.prefix, line.source), []).append(i)
    said: dict[int, Said] = {}
    for rows in _batches(list(asking)):
        asked = [(row, i) for row, one in enumerate(rows) for i in asking[one]]
        counts = [len(lines[i].at) for _, i in asked]
        at = [place for _, i in asked for place in lines[i].at]
        targets = [token for _, i in asked for token in lines[i].targets]
        of = np.repeat([row for row, _ in asked], counts)
        device = model.embed.weight.device
        text = stream([row.ids for row in rows], [row.prefix for row in rows], device)
        sources = [row.source for row in rows if row.source is not None]
        source = stream(sources, [len(ids) for ids in sources], device) if sources else None
        h = model(text, source).h[torch.tensor(of, device=device), torch.tensor(at, device=device)]
        nats, likeliest = predicted(model.head, h, torch.tensor(targets, device=device))
        ends = np.cumsum(counts)[:-1]
        parts = zip(asked, np.split(nats, ends), np.split(likeliest, ends), strict=True)
        said |= {i: Said(*part) for (_, i), *part in parts}
    return [said[i] for i in range(len(lines))]


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of one length together: no padding, so attention needs no mask, and no row depends on others."""
    alike: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        alike.setdefault((len(row.ids), len(row.source or ())), []).append(row)
    for size, some in alike.items():
        n = max(1, TOKENS // sum(size))
        yield from (some[i : i + n] for i in range(0, len(some), n))


def stream(rows: Sequence[tuple[int, ...]], prefix: Sequence[int], device: torch.device, at: int = 0) -> Seq:
    """Rows of one length, each one document, whose first token stands at ``at`` in it."""
    ids = torch.tensor(rows, device=device)
    pos = torch.arange(at, at + ids.shape[1], device=device).expand_as(ids)
    return Seq(ids, torch.zeros_like(ids), pos, pos < torch.tensor(prefix, device=device)[:, None])


def predicted(head: HeadModule, h: Float[Tensor, "N D"], targets: Int[Tensor, " N"]) -> Said:
    """What the head says of the targets, a chunk of positions at a time."""
    nats, likeliest = [], []
    n_places = max(1, chunk_elements(h.device.type) // int(head.get_parameter("weight").shape[0]))
    for some, wanted in zip(h.split(n_places), targets.split(n_places), strict=True):
        logits = head(some)
        logits = logits.to(at_least_float32(logits.dtype))
        own = logits.gather(-1, wanted[:, None])[:, 0]
        nats.append((logits.logsumexp(-1) - own).double().cpu().numpy())
        likeliest.append((own >= logits.amax(-1)).cpu().numpy())
    return Said(np.concatenate(nats), np.concatenate(likeliest))
