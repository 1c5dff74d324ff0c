"""Pairs, documents and variants that the tests of contrastive learning share."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.model import Layer
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.pairs import Pairs
from llmtrain.types import BOS, NO_DOC, PAD, Row, Seq
from tests.tiny import DENSE, N_RESERVED, VOCAB

T = 12
PLAIN = DENSE["plain"]
DROPPED = dataclasses.replace(PLAIN, dropout=0.2)
EXPERTS = dataclasses.replace(
    DROPPED, layers=(Layer(mixer=Attention(head_dim=8), mlp=MoE(n_experts=4, balance=0.1, z_loss=0.01)),)
)
VARIANTS: dict[str, dict[str, Any]] = {
    "crops": {},
    "adjacent": {"pairs": "adjacent", "directions": "one"},
    "dropout": {"pairs": "dropout", "pooling": "first"},
    "projected": {"projection": 16, "matryoshka": (4, 8), "learn_temperature": True},
    "mlm": {"aux": "mlm"},
    "clm": {"aux": "clm", "visibility": "causal", "pooling": "last"},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def document(n: int, *, number: int = 3, padding: int = 0) -> Row:
    """BOS and ``n`` words, all different, of one document."""
    ids = np.array([BOS, *range(N_RESERVED, N_RESERVED + n), *[PAD] * padding])
    return Row(ids, np.array([number] * (n + 1) + [NO_DOC] * padding))


def pairs_of(objective: Contrastive, row: Row, *, seed: int = 0, seq_len: int = T) -> Pairs:
    return objective.example(row, VOCAB, seq_len=seq_len, rng=np.random.default_rng(seed))


def words_of(text: Seq) -> list[int]:
    return [int(i) for i, doc in zip(text.ids, text.doc, strict=True) if doc != NO_DOC][1:]


def flat(tree: Any) -> list[Any]:
    return tree.tolist() if isinstance(tree, Tensor) else [flat(part) for part in tree]
