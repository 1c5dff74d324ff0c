"""Two views of one document from raw text, without labels: what contrastive examples are made of."""

import hashlib
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from llmtrain.objectives.base import seq_of
from llmtrain.objectives.masking import Shares, choose, corrupt, units_of
from llmtrain.types import BOS, IGNORE, NO_DOC, PAD, Row, Seq, Vocab

Kind = Literal["crops", "adjacent", "dropout"]
Aux = Literal["none", "mlm", "clm"]
_BERT = Shares(mask=0.8, random=0.1)  # Devlin et al. 2019


class View(NamedTuple):
    """A part of a document, BOS before it and padding after it; S is 0 where no tokens are predicted."""

    text: Seq
    key: Int[Tensor, " B"]  # of dropout
    at: Int[Tensor, "B S"]  # positions that predict a token
    targets: Int[Tensor, "B S"]  # what they predict; IGNORE where a short view has fewer


class Pairs(NamedTuple):
    first: View
    second: View
    marks: Int[Tensor, "B 3"]  # the document's number, and a hash of what each view says


def strangers(rows: Int[Tensor, "B 3"], others: Int[Tensor, "C 3"]) -> Bool[Tensor, "B C"]:
    """Which rows, by their marks, may be negatives of each other: of two documents, and no view alike."""
    out = rows[:, :1] != others[:, 0]
    for i, j in ((1, 1), (1, 2), (2, 1), (2, 2)):
        out = out & (rows[:, i, None] != others[:, j])
    return out


def raw_len(kind: Kind, seq_len: int) -> int:
    """Raw tokens of a row, BOS included: two views long, but where both views are the same text."""
    return seq_len if kind == "dropout" else 2 * seq_len - 1


def pair_of(
    row: Row,
    vocab: Vocab,
    *,
    kind: Kind,
    seq_len: int,
    prefix: bool,
    aux: Aux,
    rate: float,
    rng: np.random.Generator,
) -> Pairs:
    """Two views of a document. ``prefix`` says whether a view sees all of itself, ``rate`` how much of it is masked."""
    text = row.ids[row.doc != NO_DOC][1:]  # without its BOS
    spans = _spans(text, kind, seq_len - 1, rng)
    marks = [int(row.doc[0]), *(_hash(span) for span in spans)]
    views = [
        _view(span, vocab, seq_len=seq_len, prefix=prefix, aux=aux, rate=rate, rng=rng) for span in spans
    ]
    return Pairs(views[0], views[1], np.array(marks))  # type: ignore[arg-type]


def n_predicted(aux: Aux, rate: float, seq_len: int) -> int:
    """How many positions of a full view predict a token: what the sum over a row is divided by."""
    return {"none": 0, "clm": seq_len - 1, "mlm": max(1, round(rate * (seq_len - 1)))}[aux]


def _spans(text: np.ndarray, kind: Kind, longest: int, rng: np.random.Generator) -> list[np.ndarray]:
    """At most ``longest`` tokens each; of a text shorter than two of them, half of it."""
    if kind == "dropout":
        return [text[:longest]] * 2
    n = min(longest, len(text) // 2)
    starts = [0, n] if kind == "adjacent" else rng.integers(len(text) - n + 1, size=2).tolist()
    return [text[start : start + n] for start in starts]


def _view(
    span: np.ndarray,
    vocab: Vocab,
    *,
    seq_len: int,
    prefix: bool,
    aux: Aux,
    rate: float,
    rng: np.random.Generator,
) -> View:
    ids = np.full(seq_len, PAD, np.int64)
    ids[0], ids[1 : len(span) + 1] = BOS, span
    doc = np.where(np.arange(seq_len) <= len(span), 0, NO_DOC)
    key = rng.integers(2**62)
    at = np.zeros(n_predicted(aux, rate, seq_len), np.int64)
    targets = np.full(at.shape, IGNORE, np.int64)
    if aux == "clm":
        at[: len(span)], targets[: len(span)] = np.arange(len(span)), span
    elif aux == "mlm":
        units = units_of(Row(ids, doc), vocab, "token")
        found = choose(units, max(1, round(rate * len(span))), span=1.0, rng=rng)
        at[: len(found)], targets[: len(found)] = found, ids[found]
        ids = corrupt(ids, found, _BERT, vocab, rng)
    return View(seq_of(ids, doc, prefix), key, at, targets)  # type: ignore[arg-type]


def _hash(ids: np.ndarray) -> int:
    digest = hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
