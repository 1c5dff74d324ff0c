"""A reversible escape for the characters that SentencePiece cannot carry, or cannot learn pieces of.

SentencePiece writes a space as U+2581, so a literal one would come back as a space; it drops a training sentence with
U+2585, and learns no piece with a tab. Each gets a stand-in from the end of the last private-use plane. A literal
stand-in, should text ever hold one, becomes ``ESCAPE`` and its digit, so the escape loses nothing.
"""

import re

ESCAPE = "\U0010fe00"
_STAND_INS = {"\t": "\U0010fe01", "\u2581": "\U0010fe02", "\u2585": "\U0010fe03"}
_LITERALS = [ESCAPE, *_STAND_INS.values()]  # in the order of their digits
_MEANING = {stand_in: char for char, stand_in in _STAND_INS.items()} | {
    f"{ESCAPE}{digit}": literal for digit, literal in enumerate(_LITERALS)
}
_LITERAL = re.compile(f"[{''.join(_LITERALS)}]")
_ESCAPED = re.compile("|".join(_MEANING))

# characters that the vocabulary must have as pieces: the stand-ins, and the digits that follow ESCAPE
REQUIRED = "".join(_LITERALS) + "".join(map(str, range(len(_LITERALS))))


def escape(text: str) -> str:
    if any(literal in text for literal in _LITERALS):
        text = _LITERAL.sub(lambda found: f"{ESCAPE}{_LITERALS.index(found[0])}", text)
    for char, stand_in in _STAND_INS.items():
        text = text.replace(char, stand_in)
    return text


def unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: _MEANING[found[0]], text)


def raw_bytes(piece: str) -> bytes:
    """The UTF-8 of the raw text that an escaped piece stands for.

    An ``ESCAPE`` counts as the three bytes that all literals begin with, its digit as the fourth: lengths are
    exact, however the two are cut into pieces.
    """
    for char, stand_in in _STAND_INS.items():
        piece = piece.replace(stand_in, char)
    return piece.encode().replace(ESCAPE.encode(), ESCAPE.encode()[:3])
