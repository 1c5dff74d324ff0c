"""Frozen features: what a model's layers make of texts, and of parts of texts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.evaluation.feature_settings import Pooling
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.tasks import Input
from llmtrain.nn.model import Model
from llmtrain.objectives.embedding import ContrastiveHead
from llmtrain.ops import backend
from llmtrain.types import BOS, NO_DOC, PAD, Seq, Visibility

SPAN_POOLINGS = ("mean", "last")
HEAD = "head"  # the layer of a contrastive run's own embedding
_ROWS = 64  # of a batch


class Place(NamedTuple):
    """Where a vector was taken."""

    layer: (
        str  # "0" is the embedding, the highest is what a head reads, "head" the embedding that a run trained
    )
    pooling: str  # over the positions of a text, or of a part of it


Features = dict[Place, Float[np.ndarray, "N D"]]


class _Piece(NamedTuple):
    """Tokens of a text that one row holds."""

    ids: list[int]
    spans: list[tuple[int, int, int]]  # (number of the input, first position, position after the last)


def text_features(subject: Subject, texts: Sequence[str], poolings: Sequence[Pooling]) -> Features:
    """A vector of each text at every layer and pooling; of longer texts, the beginning that a row holds.

    Every position of the text is seen where the objective has trained that: an encoder and a prefix-LM read all of it
    as their source. ``first`` is BOS, which is left out of the mean and the maximum, and of causal models, where it has
    seen nothing. A contrastive run has its own pooled embedding besides. Batches are made of the texts alone, so
    features are the same every time.
    """
    if not _sees_ahead(subject):
        poolings = [pooling for pooling in poolings if pooling != "first"]
    ids = beginnings(subject, texts, subject.seq_len)
    pieces = [_Piece(row, [(i, 1, len(row) + 1)] if row else [(i, 0, 1)]) for i, row in enumerate(ids)]
    return _collected(subject, pieces, len(texts), poolings, whole=True)


def span_features(subject: Subject, inputs: Sequence[Input]) -> Features:
    """A vector of each part at every layer: the mean over its tokens, and its last.

    A text that is longer than a row is read in rows end to end, and a part is seen in the row that holds its end.
    Raises ConfigError where the tokenizer loses text, so that tokens do not say which characters they are.
    """
    room = _room(subject)
    vocab = subject.tokenizer.vocab()
    texts = list(dict.fromkeys(one.text for one in inputs))
    pieces: list[_Piece] = []
    row_of: dict[str, int] = {}
    ends_of: dict[str, np.ndarray] = {}
    for text, ids in zip(texts, subject.tokenizer.encode_batch(texts), strict=True):
        ends = np.cumsum(vocab.n_bytes[ids])
        if not len(ids) or ends[-1] != len(text.encode()):
            raise ConfigError(
                "this run's tokenizer changes text, so the tokens of a word are not known: leave out the yardsticks of "
                "names (name_role in corpus)"
            )
        row_of[text], ends_of[text] = len(pieces), ends
        pieces += [_Piece(ids[at : at + room].tolist(), []) for at in range(0, len(ids), room)]
    for i, (text, span) in enumerate(inputs):
        assert span is not None and span[0] < span[1], "a part has characters"
        start, end = (len(text[:at].encode()) for at in span)
        first = int(np.searchsorted(ends_of[text], start, "right"))
        last = int(np.searchsorted(ends_of[text], end, "left"))
        row, at = divmod(last, room)
        begin = max(first - row * room, 0)
        pieces[row_of[text] + row].spans.append((i, begin + 1, at + 2))
    kept = [piece for piece in pieces if piece.spans]
    return _collected(subject, kept, len(inputs), SPAN_POOLINGS, whole=False)


def beginnings(subject: Subject, texts: Sequence[str], length: int) -> list[list[int]]:
    """The tokens of each text that a row of ``length`` holds."""
    room = min(_room(subject), length - 1)
    return [row.tolist()[:room] for row in subject.tokenizer.encode_batch(texts)]


def _sees_ahead(subject: Subject) -> bool:
    return subject.objective.encoder or subject.objective.sees is not Visibility.CAUSAL


def _room(subject: Subject) -> int:
    """Tokens of text in a row, beside BOS and an encoder's terminator."""
    return subject.seq_len - 1 - subject.objective.encoder


@torch.no_grad()
def _collected(
    subject: Subject, pieces: Sequence[_Piece], n: int, poolings: Sequence[str], *, whole: bool
) -> Features:
    out: Features = {}
    with padded_rows(subject):
        for batch, seq in _batches(subject, pieces):
            spans = ((*span, r) for r, piece in enumerate(batch) for span in piece.spans)
            number, begin, end, row = (
                torch.tensor(x, device=seq.ids.device) for x in zip(*spans, strict=True)
            )
            for place, found in _pooled(subject.model, seq, poolings, (row, begin, end), whole=whole):
                if place not in out:
                    out[place] = np.empty((n, found.shape[1]), np.float32)
                out[place][number.cpu().numpy()] = found.float().cpu().numpy()
    return out


def _batches(subject: Subject, pieces: Sequence[_Piece]) -> Iterator[tuple[list[_Piece], Seq]]:
    """Rows of about one length together, the longest first."""
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i].ids))  # stable, so the same every time
    for at in range(0, len(order), _ROWS):
        batch = [pieces[i] for i in order[at : at + _ROWS]]
        yield batch, stream(subject, [piece.ids for piece in batch])


def padded_rows(subject: Subject) -> AbstractContextManager[None]:
    """Attention for rows of many lengths: on a CPU one masked call is faster than one call a row."""
    on_cpu = subject.model.embed.weight.device.type == "cpu"
    return backend.force(attention="masked" if on_cpu else "auto")


def stream(subject: Subject, texts: Sequence[Sequence[int]]) -> Seq:
    """Tokens of one text a row, from position 1 on, padded to the longest: BOS before, and after for an encoder."""
    encoder, device = subject.objective.encoder, subject.model.embed.weight.device
    rows = [[BOS, *ids, *([BOS] if encoder else [])] for ids in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], device=device)
    place = torch.arange(width, device=device).expand(len(rows), width)
    real = place < torch.tensor([len(row) for row in rows], device=device)[:, None]
    return Seq(
        ids=ids,
        doc=torch.where(real, 0, NO_DOC),
        pos=torch.where(real, place, 0),
        prefix=real if _sees_ahead(subject) else torch.zeros_like(real),
    )


def _pooled(
    model: Model, seq: Seq, poolings: Sequence[str], spans: tuple[Tensor, Tensor, Tensor], *, whole: bool
) -> Iterator[tuple[Place, Float[Tensor, "N D"]]]:
    row, begin, end = spans
    for i, h in enumerate(layers := model.taps(seq)):
        for pooling in poolings:
            yield Place(str(i), pooling), _pool(h, row, begin, end, pooling)
        if whole and i == len(layers) - 1 and isinstance(model.head, ContrastiveHead):
            yield Place(HEAD, "own"), model.head(h, seq)[row]


def _pool(
    h: Float[Tensor, "B T D"], row: Tensor, begin: Tensor, end: Tensor, how: str
) -> Float[Tensor, "N D"]:
    """Over the positions from ``begin`` to before ``end`` of rows of ``h``, which may be read several times."""
    if how == "mean":
        sums = torch.nn.functional.pad(h.double().cumsum(1), (0, 0, 1, 0))
        return (sums[row, end] - sums[row, begin]) / (end - begin)[:, None]
    if how == "max":
        place = torch.arange(h.shape[1], device=h.device)
        outside = (place < begin[:, None]) | (place >= end[:, None])
        return h[row].masked_fill(outside[..., None], -torch.inf).amax(1)
    return h[row, 0] if how == "first" else h[row, end - 1]
