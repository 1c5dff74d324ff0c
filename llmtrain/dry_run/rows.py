"""A batch of the shapes that training has, of noise: a dry run reads no text."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain import philox
from llmtrain.data.collate import collate
from llmtrain.data.tokenizers.base import TokenizerConfig
from llmtrain.errors import ConfigError, DataError
from llmtrain.run import Run
from llmtrain.types import BOS, Row, Vocab


def vocabulary(run: Run) -> Vocab:
    """Of the size that the tokenizer will have. Raises ConfigError where only its training tells."""
    size = run.estimate.vocabulary or _size(run.tokenizer)
    if size is None:
        raise ConfigError(
            f"{type(run.tokenizer).__name__} has as many tokens as its training finds, and a dry run trains none: "
            "give estimate.vocabulary"
        )
    reserved = run.tokenizer.n_reserved
    if size <= reserved:
        raise ConfigError(
            f"estimate.vocabulary={size} leaves no token beside the {reserved} reserved ids: give a larger one"
        )
    words = np.arange(size) >= reserved
    return Vocab(size, reserved, np.where(words, 4, 0).astype(np.int32), words, np.zeros(size, bool))


def _size(cfg: TokenizerConfig) -> int | None:
    stated = getattr(cfg, "vocab_size", None)
    if stated is not None:
        return int(stated)

    def texts() -> Iterator[str]:
        return iter(())

    with tempfile.TemporaryDirectory() as folder:  # bytes need no text, and a file was trained before
        try:
            return cfg.build(texts, Path(folder)).vocab_size
        except DataError:
            if hasattr(cfg, "file"):
                raise
            return None


def batch(run: Run, vocab: Vocab, n_rows: int) -> Any:
    """``n_rows`` full rows, each of one document, as the objective makes examples of them."""
    objective, length = run.objective, run.objective.raw_len(run.seq_len)
    examples = []
    for i in range(n_rows):
        rng = philox.generator(run.data_seed, "dry run", 0, i)
        ids = rng.integers(vocab.n_reserved, vocab.size, length)
        ids[0] = BOS
        doc = np.full(length, i if objective.rows == "document" else 0)
        row = Row(ids, doc, i)
        examples.append(objective.example(row, vocab, seq_len=run.seq_len, rng=rng))
    return collate(examples)
