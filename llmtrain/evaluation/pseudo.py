"""Pseudo-likelihood of a masked model: each token from all others of its text, but for the rest of its own word."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Measured
from llmtrain.evaluation.lines import Line, read
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.suffix import ratio
from llmtrain.evaluation.windows import Window, items_of
from llmtrain.types import BOS, MASK

NOTE = "each token given those after its word too: no likelihood, and comparable between masked models alone"


def pseudo_likelihood(subject: Subject, found: Sequence[Window]) -> Measured:
    """Of whole windows, in bits per byte; those of them that do not fit into seq_len lose their end."""
    tokenizer, room = subject.tokenizer, subject.seq_len - 1
    ids = [i[:room] for i in tokenizer.encode_batch([window.text for window in found])]
    begins = [(BOS,) if window.begins else () for window in found]
    nats = pseudo_nats(subject, list(zip(begins, ids, strict=True)))
    n_bytes = tokenizer.vocab().n_bytes
    read_bytes = np.array([n_bytes[text].sum() for text in ids], np.float64)
    items = items_of(found, np.array([one.sum() for one in nats]), read_bytes)
    return Measured(
        yardstick="pseudo_likelihood",
        kind="pseudo_likelihood",
        split="test",
        metric="bits per byte",
        value=ratio(items),
        better="lower",
        n=len(found),
        items=items,
        item_se=standard_error(items),
        common=False,
        note=NOTE,
    )


def pseudo_nats(
    subject: Subject, texts: Sequence[tuple[tuple[int, ...], np.ndarray]]
) -> list[Float[np.ndarray, " n"]]:
    """Of each token of (what stands before, ids): PLL-word-l2r (Kauf & Ivanova 2023).

    A token is predicted with itself and what follows within its word masked. With the rest of a word in sight, the
    first pieces of rare words would be far too likely.
    """
    begins = begins_word(subject.tokenizer)
    lines, sizes = [], []
    for before, ids in texts:
        word = np.cumsum(begins[ids])
        for i, token in enumerate(ids.tolist()):
            shown = np.where((word == word[i]) & (np.arange(len(ids)) >= i), MASK, ids)
            line = (*before, *shown.tolist())
            lines.append(Line(line, (len(before) + i,), (token,), prefix=len(line)))
        sizes.append(len(ids))
    nats = np.array([said.nats[0] for said in read(subject.model, lines)])
    return np.split(nats, np.cumsum(sizes)[:-1])


def begins_word(tokenizer: Tokenizer) -> Bool[np.ndarray, " V"]:
    """Which tokens begin a word: as the vocabulary tells and, in scripts without spaces, every one."""
    known = tokenizer.vocab().starts_word
    first = [surface.decode(errors="ignore")[:1] for surface in tokenizer.surfaces()]
    spaceless = [c.isalpha() and _spaceless(ord(c)) for c in first]
    return known | np.concatenate((np.zeros(tokenizer.n_reserved, bool), spaceless))


def _spaceless(code: int) -> bool:
    return 0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or code >= 0x20000
