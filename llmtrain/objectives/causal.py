"""Causal language modelling: every token from those before it in its document."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from llmtrain import philox
from llmtrain.config import config
from llmtrain.nn.generate import Sampling, generate
from llmtrain.nn.model import Model, TokenHead
from llmtrain.objectives.base import Loss, Objective, Pass, Sample, seq_of
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.types import IGNORE, NO_DOC, Row, Seq, Visibility, Vocab


class CausalBatch(NamedTuple):
    text: Seq
    targets: Int[Tensor, "B T"]  # the next token of each position; IGNORE before padding


@config
class CausalLM(Objective):
    """Next-token prediction. BOS is the only separator, so the end of a document is predicted as "BOS comes next"."""

    z_loss: float = 0.0  # weight of the squared log-partition (PaLM)

    overlap: ClassVar[int] = 1  # the last token of a row is only a target; the next row begins with it
    score_name: ClassVar[str] = "clm_nats_per_token"
    score_unit: ClassVar[str] = "nats/token"
    likelihood: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"z_loss must not be negative, got {self.z_loss}")

    @property
    def sees(self) -> Visibility:
        return Visibility.CAUSAL

    def raw_len(self, seq_len: int) -> int:
        return seq_len + 1

    def scored(self, seq_len: int) -> int:
        return seq_len

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        return (Pass("trunk", seq_len, scored=seq_len),)

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> CausalBatch:
        targets = np.where(row.doc[1:] == NO_DOC, IGNORE, row.ids[1:])
        return CausalBatch(seq_of(row.ids[:-1], row.doc[:-1], False), targets)  # type: ignore[arg-type]

    def head(self, d_model: int, vocab_size: int) -> TokenHead:
        return TokenHead(d_model, vocab_size)

    def loss(self, model: Model, batch: CausalBatch) -> Loss:
        h, routing = model(batch.text)
        scored = batch.targets != IGNORE
        out = linear_cross_entropy(
            h.flatten(0, 1), model.head.weight, batch.targets.flatten(), z_loss=self.z_loss
        )
        nats = out.nats.unflatten(0, batch.targets.shape).sum(1)
        return Loss(out.total / batch.targets.numel(), nats, scored.sum(1).to(nats.dtype), routing)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        return math.log(vocab.size - vocab.n_reserved)

    def samples(
        self,
        model: Model,
        rows: Sequence[Row],
        vocab: Vocab,
        decode: Callable[[Sequence[int]], str],
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
