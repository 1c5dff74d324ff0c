"""Causal language modelling: every token from those before it in its document."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from llmtrain import philox
from llmtrain.config import config
from llmtrain.nn.generate import Sampling, generate
from llmtrain.nn.model import Model, TokenHead
from llmtrain.objectives.base import Beginning, Loss, Objective, Pass, Sample, seq_of
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.types import IGNORE, NO_DOC, Row, Seq, Visibility, Vocab


class CausalBatch(NamedTuple):
    text: Seq
    targets: Int[Tensor, "B T"]  # the next token of each position; IGNORE before padding
    key: Int[Tensor, " B"]  # of dropout


@config
class CausalLM(Objective):
    """Next-token prediction. BOS is the only separator, so the end of a document is predicted as "BOS comes next"."""

    z_loss: float = 0.0  # weight of the squared log-partition (PaLM)

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"z_loss must not be negative, got {self.z_loss}")

    @property
    def sees(self) -> Visibility:
        return Visibility.CAUSAL

    @property
    def overlap(self) -> int:
        return 1  # the last token of a row is only a target; the next row begins with it

    @property
    def likelihood(self) -> bool:
        return True

    @property
    def continues(self) -> bool:
        return True

    @property
    def score_name(self) -> str:
        return "clm_nats_per_token"

    @property
    def score_unit(self) -> str:
        return "nats/token"

    def raw_len(self, seq_len: int) -> int:
        return seq_len + 1

    def scored(self, seq_len: int) -> int | float:
        return seq_len

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        return (Pass("trunk", seq_len, scored=seq_len),)

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> CausalBatch:
        targets = np.where(row.doc[1:] == NO_DOC, IGNORE, row.ids[1:])
        text = seq_of(row.ids[:-1], row.doc[:-1], False)
        return CausalBatch(text, targets, rng.integers(2**62))  # type: ignore[arg-type]

    def head(self, d_model: int, vocab_size: int) -> TokenHead:
        return TokenHead(d_model, vocab_size)

    def loss(self, model: Model, batch: CausalBatch) -> Loss:
        h, routing = model(batch.text, key=batch.key)
        table = model.head.get_parameter("weight")
        scored = batch.targets != IGNORE
        out = linear_cross_entropy(h.flatten(0, 1), table, batch.targets.flatten(), z_loss=self.z_loss)
        nats = out.nats.unflatten(0, batch.targets.shape).sum(1)
        return Loss(out.total / batch.targets.numel(), nats, scored.sum(1).to(nats.dtype), routing)

    def beginning(self, context: Sequence[int]) -> Beginning:
        return Beginning(list(context))

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        return math.log(vocab.size - vocab.n_reserved)

    def samples(
        self,
        model: Model,
        rows: Sequence[Row],
        vocab: Vocab,
        decode: Callable[[Sequence[int]], str],
        *,
        seq_len: int,
        seed: int,
    ) -> list[Sample]:
        """The first half of each row, and how the model goes on from it."""
        out = []
        for i, row in enumerate(rows):
            prompt = row.ids[: len(row.ids) // 2]
            made = generate(
                model,
                prompt.tolist(),
                n_tokens=len(row.ids) - len(prompt),
                n_reserved=vocab.n_reserved,
                sampling=Sampling(),
                rng=philox.generator(seed, "samples", 0, i),
            )
            out.append(Sample(decode(prompt.tolist()), decode(made)))
        return out
