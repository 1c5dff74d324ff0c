"""Sampling from a decoder, a token at a time through ``Mixer.step``."""

from collections.abc import Sequence

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
) -> list[int]:
    """Up to ``n_tokens`` ids that follow ``prompt`` (not empty), ending early where the document ends (at BOS)."""
    device = model.embed.weight.device
    state, out = model.init_state(1), []
    ids, pos = list(prompt), 0
    for _ in range(n_tokens):
        text = torch.tensor([ids], device=device)
        at = torch.arange(pos, pos + len(ids), device=device)[None]
        zero = torch.zeros_like(text)
        h, state = model.step(Seq(text, zero, at, zero.bool()), state)
        token = pick(model.head(h[0, -1]), sampling, rng, n_reserved=n_reserved)
        if token == BOS:
            break
        out.append(token)
        ids, pos = [token], pos + len(ids)
    return out


def pick(
    logits: Float[Tensor, " V"], sampling: Sampling, rng: np.random.Generator, *, n_reserved: int
) -> int:
    """One draw, in float64 on the CPU, so that a seed means the same text on every machine; BOS or a text's token."""
    x = logits.double().cpu().numpy().copy()
    x[[i for i in range(n_reserved) if i != BOS]] = -np.inf
    if sampling.temperature == 0:
        return int(x.argmax())
    p = np.exp((x - x.max()) / sampling.temperature)
    order = np.argsort(-p, kind="stable")
    mass = (p / p.sum())[order].cumsum()
    kept = order[: int(np.searchsorted(mass, sampling.top_p)) + 1]
    return int(rng.choice(kept, p=p[kept] / p[kept].sum()))
