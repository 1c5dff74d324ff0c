"""What counts as a document, and where a long one is cut: the rules between raw text and anything that is hashed."""

from collections.abc import Iterator
from typing import Literal

from llmtrain.data.sources.base import Document, Tally
from llmtrain.errors import DataError

OnBad = Literal["skip", "error"]
OnInvalid = Literal["replace", "refuse"]

_BYTE_ORDER_MARK = "\ufeff"


def decode(raw: bytes, on_invalid: OnInvalid, tally: Tally, *, file: str, line: int) -> str:
    """UTF-8 to text; what is invalid becomes U+FFFD and is counted, or is refused, naming its line.

    ``line`` is the number of the first line of ``raw`` in ``file``.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = f"{file}:{line + raw[: error.start].count(10)}"  # 10: a newline
        if on_invalid == "refuse":
            raise DataError(
                f"{at}: byte 0x{raw[error.start]:02x} is not valid UTF-8; convert the file, or set "
                "invalid_utf8=replace to count and replace such bytes"
            ) from error
        text = raw.decode(errors="replace")
        tally.repair("invalid UTF-8 sequence", at, text.count("\ufffd") - raw.count("\ufffd".encode()))
        return text


def accept(value: object, on_bad: OnBad, tally: Tally, *, file: str, place: str) -> Document | None:
    """``value`` as a document, or None where it is none: then counted, or refused, as ``on_bad`` says."""
    fault = _fault(value)
    if fault is None:
        assert isinstance(value, str)
        text = value.removeprefix(_BYTE_ORDER_MARK)
        tally.repair("byte order mark removed", f"{file}:{place}", len(value) - len(text))
        return Document(text, file, place)
    if on_bad == "error":
        raise DataError(
            f"{file}:{place}: {fault}; repair it, or set on_bad_document=skip to count and skip such"
        )
    tally.drop(fault, f"{file}:{place}")
    return None


def _fault(value: object) -> str | None:
    if value is None:
        return "missing text (null)"
    if not isinstance(value, str):
        return f"text that is no string ({type(value).__name__})"
    text = value.removeprefix(_BYTE_ORDER_MARK)
    if not text or text.isspace():
        return "empty document"
    if "\0" in text:
        return "document with a NUL character"  # binary, or UTF-16; SentencePiece would drop it unsaid
    try:
        text.encode()
    except UnicodeEncodeError:
        return "document with a lone surrogate"  # from an escape such as \\ud800 in JSON
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
