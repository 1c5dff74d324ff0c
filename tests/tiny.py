"""Small packed streams, layers and models that the tests of the model side share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.collate import collate
from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mixers.ssm import SSM
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.mlps.moe import MoE
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, Model, ModelConfig
from llmtrain.objectives.base import Objective
from llmtrain.types import N_FIXED, NO_DOC, Row, Seq, Visibility, Vocab

CROSS = CrossAttention(head_dim=8)
# one architecture a line; every test of layers, blocks and models runs on all of them
DENSE: dict[str, ModelConfig] = {
    name: ModelConfig(
        n_layers=2,
        d_model=32,
        layers=(Layer(mixer=Attention(head_dim=8, **mixer), mlp=mlp),),
        cross=CROSS,
        **model,
    )
    for name, (mixer, mlp, model) in {
        "plain": ({}, SwiGLU(), {}),
        "gqa": ({"kv_group": 2}, SwiGLU(), {"tie_embeddings": False}),
        "no_qk_norm": ({"qk_norm": False}, SwiGLU(), {}),
        "window": ({"window": 3, "kv_group": 4}, SwiGLU(), {}),
        "sandwich": ({}, SwiGLU(), {"norm": "sandwich"}),
        "gelu": ({}, GELU(), {"tie_embeddings": False}),
        "mixer_alone": ({}, None, {}),
    }.items()
}

MOE: dict[str, ModelConfig] = {
    name: ModelConfig(
        n_layers=2, d_model=32, layers=(Layer(mixer=Attention(head_dim=8), mlp=mlp),), cross=CROSS
    )
    for name, mlp in {
        "moe": MoE(n_experts=4),
        "moe_shared": MoE(n_experts=4, scores="sigmoid", n_shared=1, balance=0.0, bias_rate=0.01),
        "moe_expert_choice": MoE(n_experts=4, choice="expert", renormalise=False, balance=0.0),
    }.items()
}
_SCAN = SSM(d_state=8, head_dim=8, chunk=8)
_SSM_LAYER = Layer(mixer=_SCAN, mlp=SwiGLU())
SSMS: dict[str, ModelConfig] = {
    name: ModelConfig(n_layers=2, d_model=32, layers=layers, cross=CROSS)
    for name, layers in {
        "ssm": (Layer(mixer=_SCAN),),
        "ssm_groups": (Layer(mixer=SSM(d_state=4, head_dim=8, groups=2, conv=2, chunk=4), mlp=SwiGLU()),),
        "hybrid": (_SSM_LAYER, Layer(mixer=Attention(head_dim=8), mlp=MoE(n_experts=4))),
    }.items()
}
ARCHS: dict[str, ModelConfig] = {**DENSE, **MOE, **SSMS}
FAMILIES = {name: ARCHS[name] for name in ("plain", "moe", "ssm", "hybrid")}  # one of each

N_WORDS = 48
N_RESERVED = N_FIXED + 16  # with sentinels
VOCAB = Vocab(
    size=N_RESERVED + N_WORDS,
    n_reserved=N_RESERVED,
    n_bytes=np.array([0] * N_RESERVED + [1] * N_WORDS, np.int32),
    starts_word=np.ones(N_RESERVED + N_WORDS, bool),
    ends_sentence=np.zeros(N_RESERVED + N_WORDS, bool),
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def stream(rows: Sequence[Sequence[int]], length: int, visibility: Visibility = Visibility.CAUSAL) -> Seq:
    """Documents of the given lengths laid end to end in each row, and padding up to ``length``.

    Under PREFIX the prefixes are 0, 1, 2, ... tokens of one document after the other, as far as it goes.
    """
    doc, pos = torch.full((len(rows), length), NO_DOC), torch.zeros(len(rows), length, dtype=torch.long)
    prefix = torch.full(doc.shape, visibility is Visibility.BIDIRECTIONAL)
    seen = 0
    for r, lengths in enumerate(rows):
        start = 0
        for d, n in enumerate(lengths):
            doc[r, start : start + n] = d
            pos[r, start : start + n] = torch.arange(n)
            if visibility is Visibility.PREFIX:
                prefix[r, start : start + min(seen, n)] = True
                seen += 1
            start += n
    ids = torch.randint(N_RESERVED, VOCAB.size, doc.shape, generator=torch.Generator().manual_seed(length))
    return Seq(ids.where(doc != NO_DOC, 0), doc, pos, prefix)


# several documents, a whole row, a document of one token, a row that is padding alone
MIXED = ((4, 1, 2), (8,), (2, 3), ())


def mixed(visibility: Visibility) -> Seq:
    return stream(MIXED, 8, visibility)


def words(n: int, *, documents: int = 2, seed: int = 0) -> Row:
    """A row of uniform words, in documents of about one length."""
    ids = np.random.default_rng(seed).integers(N_RESERVED, VOCAB.size, n)
    return Row(ids, np.arange(n) * documents // n)


class Uniform:
    """Rows of i.i.d. uniform words, each of one document, without BOS within."""

    def __init__(self, n_rows: int, length: int, seed: int) -> None:
        self.n_rows, self._length, self._seed = n_rows, length, seed

    def __getitem__(self, i: int) -> Row:
        row = words(self._length, documents=1, seed=self._seed + i)
        return row._replace(doc=row.doc + self._seed + i, number=i)


def examples_of(objective: Objective, rows: Sequence[Row], *, seq_len: int) -> Any:
    rngs = [np.random.default_rng([1, row.number, int(row.ids[0])]) for row in rows]
    return collate(
        [objective.example(row, VOCAB, seq_len=seq_len, rng=rng) for row, rng in zip(rows, rngs, strict=True)]
    )


def batch_of(objective: Objective, *, seq_len: int = 24, rows: int = 4, documents: int = 2) -> Any:
    """Rows of packed documents, or of one document each where that is what the objective takes."""
    alone = objective.rows == "document"
    raw = [
        words(objective.raw_len(seq_len), documents=1 if alone else documents, seed=i)._replace(number=i)
        for i in range(rows)
    ]
    if alone:
        raw = [row._replace(doc=row.doc + row.number) for row in raw]
    return examples_of(objective, raw, seq_len=seq_len)


def model_of(objective: Objective, cfg: ModelConfig, *, seed: int = 0) -> Model:
    model = objective.build(cfg, VOCAB.size)
    initialise(model, n_layers=cfg.shape[0], seed=seed)
    return model
