"""Perplexity and bits per byte of any text: sliding windows, each token scored once."""

import math
from collections.abc import Sequence

import numpy as np

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Document, Items, Measured
from llmtrain.evaluation.likelihood import Ask, Likelihood
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.evaluation.suffix import ratio
from llmtrain.types import BOS


def perplexity(
    likelihood: Likelihood, tokenizer: Tokenizer, documents: Sequence[Document], *, stride: int, seq_len: int
) -> list[Measured]:
    """``stride`` tokens at a time, each stretch after as much of what is before it as seq_len leaves room for.

    So a token has at least about seq_len - stride tokens before it, but for the first ones of a document. BOS begins
    each document and, where the model has learnt that, is scored as its end; it counts as a token, not as a byte.
    """
    n_bytes = tokenizer.vocab().n_bytes
    asks, names, files = list[Ask](), list[str](), list[str]()
    for document, text in zip(documents, tokenizer.encode_batch([d.text for d in documents]), strict=True):
        ids = (BOS, *text.tolist(), *((BOS,) if likelihood.ends else ()))
        own = stretches(ids, stride=stride, seq_len=seq_len)
        asks += own
        names += [f"{document.file}:{i * stride}" for i in range(len(own))]
        files += [document.file] * len(own)
    nats = np.array([answer.nats.sum() for answer in likelihood.answer(asks)])
    counts = np.array([len(ask.continuation) for ask in asks])
    read = np.array([n_bytes[list(ask.continuation)].sum() for ask in asks])
    # a last BOS alone has no bytes: its nats go to the stretch before
    whole = np.flatnonzero(read > 0)
    owner = np.maximum(np.searchsorted(whole, np.arange(len(asks)), side="right") - 1, 0)
    by_stretch = np.bincount(owner, weights=nats)
    per_byte = Items(
        tuple(names[i] for i in whole),
        tuple(files[i] for i in whole),
        by_stretch / (math.log(2) * read[whole]),
        read[whole].astype(np.float64),
    )
    per_token = nats.sum() / counts.sum()
    note = likelihood.note
    return [
        _measured("perplexity", math.exp(per_token), int(counts.sum()), None, note),
        _measured("bits per byte", ratio(per_byte), len(whole), per_byte, note),
    ]


def stretches(ids: tuple[int, ...], *, stride: int, seq_len: int) -> list[Ask]:
    """All of ``ids`` but the first, each once, after what is before; a model cuts that to what it has room for."""
    return [
        Ask(ids[max(0, start - seq_len) : start], ids[start : start + stride])
        for start in range(1, len(ids), stride)
    ]


def _measured(metric: str, value: float, n: int, items: Items | None, note: str) -> Measured:
    return Measured(
        yardstick="perplexity",
        kind="generation",
        split="test",
        metric=metric,
        value=value,
        better="lower",
        n=n,
        items=items,
        item_se=None if items is None else standard_error(items),
        note=note,
    )
