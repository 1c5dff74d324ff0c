"""Stretches of held-out text, cut by bytes so that they are the same for every model and every tokenizer."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Document, Items
from llmtrain.evaluation.likelihood import Ask
from llmtrain.types import BOS

_BACK = 32  # bytes that a cut may move back to be before a space


class Window(NamedTuple):
    """Text whose first half is given and whose second half is scored."""

    id: str
    file: str
    given: str
    asked: str
    begins: bool  # whether the document begins with it
    ends: bool  # whether the document ends with it

    @property
    def text(self) -> str:
        return self.given + self.asked


def items_of(
    found: Sequence[Window], nats: Float[np.ndarray, " n"], n_bytes: Float[np.ndarray, " n"]
) -> Items:
    """Bits per byte of each window, weighted by the bytes that were scored of it."""
    value = nats / (math.log(2) * n_bytes)
    return Items(tuple(w.id for w in found), tuple(w.file for w in found), value, n_bytes)


def windows(documents: Sequence[Document], n_bytes: int) -> list[Window]:
    """All windows of ``n_bytes`` (at most).

    Those of a document follow one another from its first byte; what is left at its end is one, if it is at least half
    as long. All cuts are between characters, and before a space where one is near: pieces of words begin there in most
    tokenizers, so little is lost where halves are tokenized apart. Raises DataError where there is none.
    """
    found = [window for i, document in enumerate(documents) for window in _of(i, document, n_bytes)]
    if not found:
        raise DataError(
            f"no held-out document has {n_bytes // 2} bytes, half a window: give longer texts, or lower window_bytes"
        )
    return found


def _of(number: int, document: Document, n_bytes: int) -> list[Window]:
    raw = document.text.encode()
    found, start = [], 0
    while len(raw) - start >= max(2, n_bytes // 2):
        rest = len(raw) - start
        end = len(raw) if rest <= n_bytes else cut(raw, start + n_bytes, start)
        middle = cut(raw, start + (end - start) // 2, start)
        if not start < middle < end:  # one character fills it
            break
        given, asked = raw[start:middle].decode(), raw[middle:end].decode()
        name = f"{document.file}:{number}:{start}"  # a file may have several documents
        found.append(Window(name, document.file, given, asked, start == 0, end == len(raw)))
        start = end
    return found


def cut(raw: bytes, at: int, after: int) -> int:
    """The place at or before ``at`` that is between characters, and before a space where one is near."""
    least = max(after + 1, at - _BACK)
    for i in range(at, least - 1, -1):
        if raw[i : i + 1] in (b" ", b"\n") and raw[i - 1 : i] not in (b" ", b"\n"):
            return i
    while at > after and at < len(raw) and raw[at] & 0xC0 == 0x80:  # inside a character
        at -= 1
    return at


def asks(found: Sequence[Window], tokenizer: Tokenizer, *, ends: bool) -> list[Ask]:
    """The second half of each window after its first, tokenized apart.

    BOS stands before where the document begins, and after, if ``ends``, where it ends.
    """
    given = tokenizer.encode_batch([window.given for window in found])
    asked = tokenizer.encode_batch([window.asked for window in found])
    return [
        Ask(
            ((BOS,) if window.begins else ()) + tuple(before.tolist()),
            tuple(after.tolist()) + ((BOS,) if ends and window.ends else ()),
        )
        for window, before, after in zip(found, given, asked, strict=True)
    ]
