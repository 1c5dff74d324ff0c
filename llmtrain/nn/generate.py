"""Sampling from a decoder, a token at a time through ``Mixer.step``."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.config import config
from llmtrain.nn.model import Model
from llmtrain.types import BOS, Seq


@config
class Sampling:
    temperature: float = 0.8  # 0 takes the likeliest token
    top_p: float = 0.95  # nucleus: the fewest tokens that hold this much probability (Holtzman et al. 2020)

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(
                f"temperature must not be negative, got {self.temperature}; 0 takes the likeliest token"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 keeps every token")


@torch.no_grad()
def generate(
    model: Model,
    prompt: Sequence[int],
    *,
    n_tokens: int,
    n_reserved: int,
    sampling: Sampling,
    rng: np.random.Generator,
    prefix: int = 0,
    source: Sequence[int] | None = None,
    also: Collection[int] = (),
) -> list[int]:
    """Up to ``n_tokens`` ids that follow ``prompt`` (not empty), ending early where the document ends (at BOS).

    All of the prompt sees its first ``prefix`` tokens. With ``source`` an encoder reads those ids, and ``prompt`` is
    how the decoder begins. ``also`` are the reserved ids that may be made besides BOS, such as sentinels.
    """
    device = model.embed.weight.device
    memory = None if source is None else model.encode(document(source, 0, len(source), device))
    state, out = model.init_state(1), []
    ids, pos = list(prompt), 0
    banned = [i for i in range(n_reserved) if i != BOS and i not in also]
    for _ in range(n_tokens):
        h, state = model.step(document(ids, pos, prefix, device), state, memory)
        token = pick(model.head(h[0, -1]), sampling, rng, banned=banned)
        if token == BOS:
            break
        out.append(token)
        ids, pos = [token], pos + len(ids)
    return out


def document(ids: Sequence[int], pos: int, prefix: int, device: torch.device) -> Seq:
    """A piece of one document as a stream of one row, its first token at ``pos``."""
    text = torch.tensor([list(ids)], device=device)
    at = torch.arange(pos, pos + len(ids), device=device)[None]
    return Seq(text, torch.zeros_like(text), at, at < prefix)


def pick(
    logits: Float[Tensor, " V"], sampling: Sampling, rng: np.random.Generator, *, banned: list[int]
) -> int:
    """One draw, in float64 on the CPU, so that a seed means the same text on every machine."""
    x = logits.double().cpu().numpy().copy()
    x[banned] = -np.inf
    if sampling.temperature == 0:
        return int(x.argmax())
    p = np.exp((x - x.max()) / sampling.temperature)
    order = np.argsort(-p, kind="stable")
    mass = (p / p.sum())[order].cumsum()
    kept = order[: int(np.searchsorted(mass, sampling.top_p)) + 1]
    return int(rng.choice(kept, p=p[kept] / p[kept].sum()))
