"""What counts as a document, and where a long one is cut: the rules between raw text and anything that is hashed."""

import re
from collections.abc import Iterator
from typing import Literal

from llmtrain.data.sources.base import Document, Tally
from llmtrain.errors import DataError

OnBad = Literal["skip", "replace", "error"]

_BYTE_ORDER_MARK = "\ufeff"
_REPLACEMENT = "\ufffd"
_MENDED = {  # what each kind of flaw in a text looks like
    "NUL character": re.compile("\0"),  # of a binary file, or of UTF-16; SentencePiece would drop it unsaid
    "lone surrogate": re.compile("[\ud800-\udfff]"),  # from an escape such as \\ud800 in JSON
}
# what other pipelines leave where they took the text away
_SPECIAL = re.compile(
    r"(?:\s|</?s>|<\|(?:endoftext|begin_of_text|end_of_text|eot_id|im_start|im_end|pad|bos|eos)\|>|"
    r"\[(?:CLS|SEP|PAD|MASK|UNK|BOS|EOS)\]|<(?:pad|bos|eos|unk|mask|extra_id_\d+|extra_\d+)>)+"
)


def decode(raw: bytes, on_bad: OnBad, tally: Tally, *, file: str, line: int) -> str | None:
    """UTF-8 to text; what is invalid becomes U+FFFD, costs the whole text, or is refused, as ``on_bad`` says.

    ``line`` is the number of the first line of ``raw`` in ``file``.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = f"{file}:{line + raw[: error.start].count(10)}"  # 10: a newline
        if on_bad == "error":
            raise DataError(
                f"{at}: byte 0x{raw[error.start]:02x} is not valid UTF-8; convert the file, or set "
                "on_bad_document=replace to count and replace such bytes"
            ) from error
        if on_bad == "skip":
            tally.drop("document with invalid UTF-8", at)
            return None
        text = raw.decode(errors="replace")
        tally.repair(
            "invalid UTF-8 sequence", at, text.count(_REPLACEMENT) - raw.count(_REPLACEMENT.encode())
        )
        return text


def accept(value: object, on_bad: OnBad, tally: Tally, *, file: str, place: str) -> Document | None:
    """``value`` as a document, or None where it is none: then counted, or refused, as ``on_bad`` says.

    "replace" mends what leaves a text, character by character; what does not is skipped.
    """
    at = f"{file}:{place}"
    text = value.removeprefix(_BYTE_ORDER_MARK) if isinstance(value, str) else ""
    flaws, mended = _flaws(text), text
    if flaws and on_bad == "error":
        raise DataError(
            f"{at}: document with a {flaws[0]}; repair it, or set on_bad_document=replace to count and replace "
            "such characters, on_bad_document=skip to leave the document out"
        )
    if flaws and on_bad == "skip":
        tally.drop(f"document with a {flaws[0]}", at)
        return None
    for flaw in flaws:
        mended = _MENDED[flaw].sub(_REPLACEMENT, mended)
    if fault := _fault(value, mended):
        if on_bad == "error":
            raise DataError(f"{at}: {fault}; repair it, or set on_bad_document=skip to count and skip such")
        tally.drop(fault, at)
        return None
    for flaw in flaws:
        tally.repair(flaw, at, len(_MENDED[flaw].findall(text)))
    if isinstance(value, str) and len(text) < len(value):
        tally.repair("byte order mark removed", at)
    return Document(mended, file, place)


def _flaws(text: str) -> list[str]:
    """The kinds of characters in ``text`` that no text has; fast where there are none."""
    found = ["NUL character"] if "\0" in text else []
    try:
        text.encode()
    except UnicodeEncodeError:
        found.append("lone surrogate")
    return found


def _fault(value: object, text: str) -> str | None:
    """Why ``value``, of which ``text`` was made, leaves nothing to train on."""
    if value is None:
        return "missing text (null)"
    if not isinstance(value, str):
        return f"text that is no string ({type(value).__name__})"
    if not text or text.isspace():
        return "empty document"
    if _SPECIAL.fullmatch(text):
        return "document of special tokens alone"
    if 2 * text.count(_REPLACEMENT) >= len(text):
        return "document that is mostly no text (binary, or in another encoding)"
    return None


def cut(text: bytes, limit: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive pieces of at most ``limit`` bytes of UTF-8, cut after a line where one ends.

    A line longer than ``limit`` is cut after a space or, where it has none, between characters.
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        if (newline := text.rfind(b"\n", start, end)) >= 0:
            end = newline + 1
        elif (space := text.rfind(b" ", start, end)) >= 0:
            end = space + 1
        else:
            while end > start + 1 and text[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)
