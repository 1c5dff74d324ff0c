"""Where a source and a target stand: in two streams for an encoder and a decoder, or in one for a decoder alone."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.nn.model import Model
from llmtrain.objectives.base import Beginning, Pass, seq_of
from llmtrain.objectives.corruption import Streams
from llmtrain.types import BOS, IGNORE, NO_DOC, PAD, Routing, Seq, Visibility

Layout = Literal["encoder_decoder", "prefix", "causal"]
SEES = {
    "encoder_decoder": Visibility.CAUSAL,
    "prefix": Visibility.PREFIX,
    "causal": Visibility.CAUSAL,
}


class Shape(NamedTuple):
    """What every example of a batch is padded to."""

    tokens: int  # of the source, or of the one stream that holds both
    targets: int


class Translated(NamedTuple):
    """``encoder_decoder``: a decoder reads ``target``, its own answer a token late, beside an encoder's ``source``."""

    source: Seq
    target: Seq  # the first token of every document is BOS
    targets: Int[Tensor, "B T"]  # IGNORE in padding
    scored: Float[Tensor, " B"]  # what the loss of a row is divided by, the same for all
    key: Int[Tensor, " B"]  # of dropout


class Continued(NamedTuple):
    """``prefix`` and ``causal``: in every document the source, BOS, and the answer but for its last token."""

    text: Seq
    targets: Int[Tensor, "B N"]  # IGNORE but for the answers: the BOS between predicts the first token
    where: Int[
        Tensor, "B T"
    ]  # the positions that are scored; where there are fewer, one that is not fills up
    scored: Float[Tensor, " B"]  # what the loss of a row is divided by, the same for all
    key: Int[Tensor, " B"]


def shape(layout: Layout, source: int, target: int) -> Shape:
    """Of a source (with its mode, if any) and a target: the encoder's source ends with a terminator of its own."""
    return Shape(source + 1, target) if layout == "encoder_decoder" else Shape(source + target, target)


def passes(layout: Layout, of: Shape, source: int, share: float = 1.0) -> tuple[Pass, ...]:
    """What a row costs that is padded to ``of``."""
    if layout == "encoder_decoder":
        encoder = Pass("encoder", of.tokens, share=share)
        return encoder, Pass("trunk", of.targets, source=of.tokens, scored=of.targets, share=share)
    prefix = source if layout == "prefix" else 0
    return (Pass("trunk", of.tokens, prefix=prefix, scored=of.targets, share=share),)


def arrange(
    streams: Streams, layout: Layout, of: Shape, *, scored: float, key: int
) -> Translated | Continued:
    """The example of a row, in arrays: ``scored`` is what its loss is divided by, ``key`` addresses its dropout."""
    rest = np.float64(scored), np.int64(key)
    if layout == "encoder_decoder":
        return Translated(*translated(streams, of), *rest)  # type: ignore[arg-type]
    return Continued(*continued(streams, of, prefix=layout == "prefix"), *rest)  # type: ignore[arg-type]


def translated(streams: Streams, of: Shape) -> tuple[Seq, Seq, np.ndarray]:
    """Source, target and targets."""
    source = np.append(streams.source, BOS)
    source_doc = np.append(streams.source_doc, streams.source_doc[-1])
    doc = padded(streams.target_doc, of.targets, NO_DOC)
    return (
        seq_of(padded(source, of.tokens, PAD), padded(source_doc, of.tokens, NO_DOC), True),
        seq_of(padded(late(streams), of.targets, PAD), doc, False),
        padded(streams.target, of.targets, IGNORE),
    )


def continued(streams: Streams, of: Shape, *, prefix: bool) -> tuple[Seq, np.ndarray, np.ndarray]:
    """Text, targets and where they are."""
    both = np.concatenate((streams.source_doc, streams.target_doc))
    order = np.argsort(both, kind="stable")  # of each document first the source, then the target
    answer = (order >= len(streams.source)).nonzero()[0]
    ids = np.concatenate((streams.source, late(streams)))[order]
    targets = np.full(of.tokens, IGNORE)
    targets[answer] = streams.target
    seen = np.zeros(of.tokens, bool)
    if prefix:
        seen[: len(order)] = order < len(streams.source)
    text = seq_of(padded(ids, of.tokens, PAD), padded(both[order], of.tokens, NO_DOC), seen)
    return text, targets, padded(answer, of.targets, int((targets == IGNORE).argmax()))


def late(streams: Streams) -> np.ndarray:
    """What a decoder reads: the target a token late, so that each document begins with BOS."""
    doc = streams.target_doc
    first = np.append(True, doc[1:] != doc[:-1])
    return np.where(first, BOS, np.append(BOS, streams.target[:-1]))


def beginning(source: list[int], known: list[int], layout: Layout) -> Beginning:
    """After a source and the first tokens of its target."""
    if layout == "encoder_decoder":
        return Beginning([BOS, *known], source=[*source, BOS])
    return Beginning([*source, BOS, *known], prefix=len(source) if layout == "prefix" else 0)


def padded(values: np.ndarray, length: int, by: int) -> np.ndarray:
    assert len(values) <= length, "a stream is longer than its objective says"
    out = np.full(length, by)  # np.pad takes ten times as long
    out[: len(values)] = values
    return out


class Read(NamedTuple):
    h: Float[Tensor, "N D"]  # of the positions that are scored, as many of every row, end to end
    targets: Int[Tensor, " N"]
    routing: tuple[Routing, ...]


def read(model: Model, batch: Translated | Continued) -> Read:
    """What the head is run on."""
    if isinstance(batch, Translated):
        h, routing = model(batch.target, batch.source, key=batch.key)
        return Read(h.flatten(0, 1), batch.targets.flatten(), routing)
    h, routing = model(batch.text, key=batch.key)
    n_rows, n_tokens = batch.targets.shape
    first = n_tokens * torch.arange(n_rows, device=batch.where.device)
    flat = (batch.where + first[:, None]).flatten()
    return Read(h.flatten(0, 1).index_select(0, flat), batch.targets.flatten()[flat], routing)
