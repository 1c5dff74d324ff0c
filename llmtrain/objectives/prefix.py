"""Prefix language modelling: the beginning of a document is read at once, the rest is predicted token by token."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from llmtrain import philox
from llmtrain.config import config
from llmtrain.nn.generate import Sampling, generate
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Beginning, Loss, Pass, Sample
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.objectives.denoising import longest_document
from llmtrain.types import IGNORE, NO_DOC, Row, Visibility, Vocab


@config
class PrefixLM(CausalLM):
    """Prefix-LM (Liu et al. 2018; Raffel et al. 2020): every document is split where chance will have it.

    A document of n positions has a prefix of 1 to n tokens, all alike. What is inside the prefix is seen, and so not
    scored: the last token of the prefix predicts the first that follows. A row that is one document scores
    (seq_len + 1) / 2 positions on average, and the loss of every row is divided by this constant, so that means over
    rows are exact; a row of many short documents scores a few more. The floor is that of causal language modelling:
    every scored token is uniform, whatever the prefix.
    """

    @property
    def sees(self) -> Visibility:
        return Visibility.PREFIX

    @property
    def likelihood(self) -> bool:
        return False

    @property
    def score_name(self) -> str:
        return "prefix_lm_nats_per_token"

    def scored(self, seq_len: int) -> float:
        return (seq_len + 1) / 2

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        """Two, for prefixes of all lengths: Gauss-Legendre nodes, whose mean is right for costs up to cubic in them."""
        nodes = (seq_len / 2 * (1 + sign / math.sqrt(3)) for sign in (-1, 1))
        return tuple(Pass("trunk", seq_len, prefix=round(p), scored=seq_len, share=0.5) for p in nodes)

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> CausalBatch:
        text, targets, key = super().example(row, vocab, seq_len=seq_len, rng=rng)
        starts = np.flatnonzero(text.pos == 0)
        sizes = np.diff(starts, append=len(text.pos))
        prefix = np.repeat(rng.integers(1, sizes + 1), sizes)
        scored = text.pos >= prefix - 1
        seen = (text.pos < prefix) & (text.doc != NO_DOC)
        return CausalBatch(text._replace(prefix=seen), np.where(scored, targets, IGNORE), key)  # type: ignore[arg-type]

    def loss(self, model: Model, batch: CausalBatch) -> Loss:
        out = super().loss(model, batch)
        seq_len = batch.targets.shape[1]
        loss = out.loss * (seq_len / self.scored(seq_len))
        return Loss(loss, out.nats, out.counts, out.routing)

    def beginning(self, context: Sequence[int]) -> Beginning:
        return Beginning(list(context), prefix=len(context))

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
        """The first half of the longest document of each row, and how the model goes on from it."""
        out = []
        for i, row in enumerate(rows):
            ids = longest_document(row).ids.tolist()
            prompt = ids[: (len(ids) + 1) // 2]
            made = generate(
                model,
                prompt,
                n_tokens=max(1, len(ids) - len(prompt)),
                n_reserved=vocab.n_reserved,
                sampling=Sampling(),
                rng=philox.generator(seed, "samples", 0, i),
                prefix=len(prompt),
            )
            out.append(Sample(decode(prompt), decode(made)))
        return out
