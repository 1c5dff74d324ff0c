"""Contrastive learning without labels: the two views of a row find each other among those of a whole batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.config import config, free
from llmtrain.nn.model import Model, ModelConfig, TokenHead
from llmtrain.objectives.base import Loss, Objective, Pass, Sample
from llmtrain.objectives.chunked import in_chunks
from llmtrain.objectives.embedding import MAX_SCALE, ContrastiveHead, Pooling, embed, head_of
from llmtrain.objectives.gather import first_row, gathered
from llmtrain.objectives.pairs import Aux, Kind, Pairs, n_predicted, pair_of, raw_len, strangers
from llmtrain.objectives.retrieval import Retrieval
from llmtrain.ops.infonce import cosines, info_nce
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.types import Routing, Row, Visibility, Vocab

_SHORTEST = 4  # positions of a view
_AUX_NEEDS = {"clm": "causal", "mlm": "bidirectional"}


class Encoded(NamedTuple):
    """What is kept of a chunk of rows."""

    z: Float[Tensor, "B 2 D"]
    aux: Float[Tensor, ""]  # nats of the predicted tokens of both views
    routing: tuple[Routing, ...]


@config
class Contrastive(Objective):
    """InfoNCE over all rows of a batch, those of other ranks included; rows of one document are no negatives."""

    # two crops of a document (Contriever, Izacard et al. 2022), spans side by side (DeCLUTR, Giorgi et al. 2021), or
    # one text through two dropouts (SimCSE, Gao et al. 2021)
    pairs: Kind = "crops"
    visibility: Literal["bidirectional", "causal"] = "bidirectional"
    pooling: Pooling = "mean"
    projection: int | None = None  # width of the embedding; none: d_model, without a projection
    temperature: float = 0.05
    learn_temperature: bool = False  # from temperature on, between 0.01 and 1 (CLIP, Radford et al. 2021)
    directions: Literal["one", "both"] = "both"  # the second view from the first, or each from the other
    matryoshka: tuple[int, ...] = ()  # narrower widths that embeddings are cut to (Kusupati et al. 2022)
    chunk_rows: int | None = free(None)  # rows that are held in memory at a time (GradCache); none: all
    aux: Aux = "none"  # predict tokens of both views besides
    aux_weight: float = 0.1
    aux_rate: float = 0.15  # share of tokens that mlm masks
    eval_negatives: int = 1023

    def __post_init__(self) -> None:
        for name in ("projection", "chunk_rows", "eval_negatives"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}: 0.05 is usual")
        if self.learn_temperature and not 1 / MAX_SCALE <= self.temperature <= 1:
            raise ValueError(
                f"temperature={self.temperature} is where learning begins, and it stays within [{1 / MAX_SCALE}, 1]: "
                "give one of these, or learn_temperature=false"
            )
        if list(self.matryoshka) != sorted(set(self.matryoshka)) or min(self.matryoshka, default=1) < 1:
            raise ValueError(
                f"matryoshka={list(self.matryoshka)} must be widths that increase, such as [32, 64]; the whole "
                "embedding is always one more"
            )
        if self.pooling == "first" and self.visibility == "causal":
            raise ValueError(
                "pooling=first reads BOS, which has seen nothing under visibility=causal: choose pooling=last or mean, "
                "or visibility=bidirectional"
            )
        needed = _AUX_NEEDS.get(self.aux, self.visibility)
        if needed != self.visibility:
            why = {"clm": "a token that is seen is no prediction", "mlm": "a mask is filled from both sides"}[
                self.aux
            ]
            raise ValueError(
                f"aux={self.aux} under visibility={self.visibility}: {why}; set visibility={needed}, or another aux"
            )
        if self.aux_weight < 0:
            raise ValueError(f"aux_weight must not be negative, got {self.aux_weight}")
        if not 0 < self.aux_rate < 1:
            raise ValueError(f"aux_rate must be in (0, 1), got {self.aux_rate}")

    @property
    def rows(self) -> Literal["packed", "document"]:
        return "document"

    @property
    def accumulates(self) -> bool:
        return False  # a part of a batch has fewer negatives

    @property
    def together(self) -> bool:
        return True

    @property
    def sees(self) -> Visibility:
        return Visibility(self.visibility)

    @property
    def score_name(self) -> str:
        return self.evaluations()[0].score_name

    @property
    def score_unit(self) -> str:
        return self.evaluations()[0].score_unit

    def raw_len(self, seq_len: int) -> int:
        return raw_len(self.pairs, seq_len)

    def scored(self, seq_len: int) -> int:
        return 1  # a pair; of both directions the mean

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        """Each view, and what its head is run on: one vector, and the tokens that it predicts."""
        scored = 1 + n_predicted(self.aux, self.aux_rate, seq_len)
        return (Pass("trunk", seq_len, scored=scored),) * 2

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> Pairs:
        return pair_of(
            row,
            vocab,
            kind=self.pairs,
            seq_len=seq_len,
            prefix=self.sees is Visibility.BIDIRECTIONAL,
            aux=self.aux,
            rate=self.aux_rate,
            rng=rng,
        )

    def head(self, d_model: int, vocab_size: int) -> ContrastiveHead:
        """Raises ValueError where a Matryoshka width is not narrower than the embedding."""
        width = self.projection or d_model
        if max(self.matryoshka, default=0) >= width:
            raise ValueError(
                f"objective.matryoshka={list(self.matryoshka)} must be narrower than the embedding, which has width "
                f"{width}: leave out what is not (the whole embedding is always compared too)"
            )
        return ContrastiveHead(
            d_model,
            pooling=self.pooling,
            projection=self.projection,
            temperature=self.temperature,
            learn_temperature=self.learn_temperature,
            widths=(*self.matryoshka, width),
            directions=len(self._ways),
            tokens=None if self.aux == "none" else TokenHead(d_model, vocab_size),
        )

    def loss(self, model: Model, batch: Pairs) -> Loss:
        """The mean over rows of InfoNCE, over Matryoshka's widths too; nats are those of the whole embedding.

        The term for tokens is the sum of their nats / (rows x those that two full views predict).
        """
        parts = in_chunks(partial(self._encode, model), batch, self.chunk_rows)
        z = torch.cat([part.z for part in parts])
        n, start = len(z), first_row(len(z))
        own = torch.arange(start, start + n, device=z.device)
        contrast = partial(self._contrast, model, gathered(z), gathered(batch.marks))
        nats = torch.cat(in_chunks(contrast, (z, batch.marks, own), self.chunk_rows))
        loss = nats.mean()
        if self.aux != "none":
            loss = loss + self.aux_weight * sum(part.aux for part in parts) / (2 * batch.first.at.numel())
        whole = nats[:, -1].detach()
        routing = tuple(counted for part in parts for counted in part.routing)
        return Loss(loss, whole, torch.ones_like(whole), routing)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        return self.evaluations()[0].floor(vocab, seq_len)

    def evaluations(self) -> tuple[Retrieval, ...]:
        """The same for all kinds of pairs: InfoNCE over adjacent spans, and how often the nearest is another."""
        return (
            Retrieval(of=self, negatives=self.eval_negatives, measure="nats"),
            Retrieval(of=self, negatives=self.eval_negatives, measure="misses"),
        )

    def held_out(
        self, model: Model, batches: Iterable[Pairs]
    ) -> Iterator[tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]:
        return self.evaluations()[0].held_out(model, batches)

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
        return self.evaluations()[0].samples(model, rows, vocab, decode, seq_len=seq_len, seed=seed)

    def check(self, cfg: ModelConfig, *, seq_len: int, one_document: bool) -> None:
        super().check(cfg, seq_len=seq_len, one_document=one_document)
        if self.pairs == "dropout" and cfg.dropout == 0:
            raise ValueError(
                "objective.pairs=dropout tells two views of one text apart by dropout alone, but model.dropout=0: set "
                "model.dropout=0.1, or objective.pairs=crops"
            )
        if seq_len < _SHORTEST:
            raise ValueError(f"seq_len={seq_len} leaves a view too few tokens: give at least {_SHORTEST}")

    @property
    def _ways(self) -> tuple[tuple[int, int], ...]:
        """(view that asks, view that is looked for)."""
        return ((0, 1),) if self.directions == "one" else ((0, 1), (1, 0))

    def _encode(self, model: Model, batch: Pairs) -> Encoded:
        z, (h, routing) = embed(model, batch)
        aux, tokens = h.new_zeros(()), head_of(model).tokens
        if tokens is not None:
            at, targets = (torch.cat(pair) for pair in zip(batch.first[2:], batch.second[2:], strict=True))
            predicting = h[torch.arange(len(h), device=h.device)[:, None], at]
            aux = linear_cross_entropy(predicting.flatten(0, 1), tokens.weight, targets.flatten()).total
        return Encoded(z, aux, routing)

    def _contrast(
        self,
        model: Model,
        everyone: Float[Tensor, "C 2 D"],
        everyones_marks: Int[Tensor, "C 3"],
        rows: tuple[Tensor, Tensor, Tensor],
    ) -> Float[Tensor, "B W"]:
        """Nats of rows (z, marks, number among all) against everyone, at each width."""
        z, marks, own = rows
        negatives, scale = strangers(marks, everyones_marks), head_of(model).scale()
        by_width = [
            torch.stack(
                [
                    info_nce(cosines(z[:, a, :width], everyone[:, b, :width]), own, negatives, scale)
                    for a, b in self._ways
                ]
            ).mean(0)
            for width in head_of(model).widths
        ]
        return torch.stack(by_width, 1)
