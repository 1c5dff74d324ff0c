"""InfoNCE: which of many candidates belongs to an anchor, and how sure the cosines are of it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmtrain.ops.dtypes import at_least_float32


def cosines(a: Float[Tensor, "B D"], c: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
    """Of every anchor with every candidate, in at least float32, whatever autocast says."""
    wide = at_least_float32(a.dtype)
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.to(wide), dim=-1) @ F.normalize(c.to(wide), dim=-1).T


def info_nce(
    cosine: Float[Tensor, "B C"],
    positives: Int[Tensor, " B"],
    negatives: Bool[Tensor, "B C"],
    scale: Float[Tensor, "1"] | float,
) -> Float[Tensor, " B"]:
    """Nats of each anchor's positive among itself and the anchor's negatives (van den Oord et al. 2018).

    ``positives`` number the candidates, ``negatives`` says which of them count against an anchor (whether the positive
    is marked does not matter), and ``scale`` is one over the temperature.
    """
    own = positives[:, None] == torch.arange(cosine.shape[1], device=cosine.device)
    logits = (cosine * scale).masked_fill(~(negatives | own), -math.inf)
    return F.cross_entropy(logits, positives, reduction="none")


def misses(
    cosine: Float[Tensor, "B C"], positives: Int[Tensor, " B"], negatives: Bool[Tensor, "B C"]
) -> Float[Tensor, " B"]:
    """1 where some negative is at least as near as the positive, else 0: its mean is 1 - recall@1.

    A tie is a miss, so that embeddings that are all alike find nothing.
    """
    own = cosine.gather(1, positives[:, None])
    nearest = cosine.masked_fill(~negatives, -math.inf).amax(1, keepdim=True)
    return (nearest >= own)[:, 0].to(cosine.dtype)
