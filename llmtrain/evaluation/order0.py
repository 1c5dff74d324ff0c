"""What the symbols of a text tell of themselves: the entropy of its own frequencies, a baseline of its perplexity."""

import math
from collections.abc import Sequence

import numpy as np

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Document, Measured

_NOTE = "of frequencies counted in this very text, which no model knows beforehand"


def order0(tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, list[Measured]]:
    """By name: ``unigram`` of its tokens, ``bytes`` of its bytes."""
    tokens = np.concatenate(tokenizer.encode_batch([document.text for document in documents]))
    raw = np.frombuffer("".join(document.text for document in documents).encode(), np.uint8)
    nats = entropy(tokens) * len(tokens)
    return {
        "unigram": [
            _measured("perplexity", math.exp(nats / len(tokens)), len(tokens)),
            _measured("bits per byte", nats / (math.log(2) * len(raw)), len(raw)),
        ],
        "bytes": [_measured("bits per byte", entropy(raw) / math.log(2), len(raw))],
    }


def entropy(symbols: np.ndarray) -> float:
    """Nats a symbol."""
    p = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(p * np.log(p)).sum())


def _measured(metric: str, value: float, n: int) -> Measured:
    return Measured("perplexity", "generation", "test", metric, value, "lower", n, note=_NOTE)
