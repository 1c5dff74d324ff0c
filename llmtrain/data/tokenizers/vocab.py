"""The arrays over a vocabulary that objectives and scores use, made of what each id stands for."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmtrain.errors import DataError
from llmtrain.types import Script, Vocab

_CLOSERS = "\"')]}»”’」』）】*_`"
_ENDS = (".", "!", "?", "…", "。", "！", "？", "؟", "।")
# from the Unicode blocks; the middle dot U+30FB stands between words, and U+30A0 is a hyphen: symbols
_BLOCKS = (
    (Script.HIRAGANA, ((0x3041, 0x309F),)),
    (Script.KATAKANA, ((0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    (  # with the repeat, closing and zero marks 々〆〇
        Script.KANJI,
        ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    ),
)


def tabulate(n_reserved: int, surfaces: Sequence[bytes]) -> Vocab:
    """The vocabulary in which id ``n_reserved + i`` stands for ``surfaces[i]``.

    ``starts_word`` and ``ends_sentence`` are read off a token alone, so they are a guess. A token starts a word
    unless it begins inside one, with a letter, a digit, an underscore or part of a character: right where words
    are spaced, of no use in Japanese, whose words ``scripts`` tell. A token ends a sentence if it ends in a full
    stop or the like, closing marks aside; that of an abbreviation counts too.
    """
    none = np.zeros(n_reserved, dtype=bool)
    return Vocab(
        size=n_reserved + len(surfaces),
        n_reserved=n_reserved,
        n_bytes=np.array([0] * n_reserved + [len(s) for s in surfaces], dtype=np.int32),
        starts_word=np.concatenate([none, np.array([_starts_word(s) for s in surfaces], dtype=bool)]),
        ends_sentence=np.concatenate([none, np.array([_ends_sentence(s) for s in surfaces], dtype=bool)]),
        scripts=scripts_of(n_reserved, surfaces),
    )


def scripts_of(n_reserved: int, surfaces: Sequence[bytes]) -> np.ndarray | None:
    """[V, 2] uint8: the ``Script`` of the first and of the last character of each id; None where none is kana."""
    edges = np.array([_edges(s) for s in surfaces], np.uint8).reshape(-1, 2)
    if not np.isin(edges, (Script.HIRAGANA, Script.KATAKANA)).any():
        return None
    return np.concatenate([np.full((n_reserved, 2), Script.SPACE, np.uint8), edges])


def _starts_word(surface: bytes) -> bool:
    first = surface.decode(errors="replace")[:1]
    return first not in ("", "\ufffd", "_") and not first.isalnum()


def _ends_sentence(surface: bytes) -> bool:
    return surface.decode(errors="replace").rstrip().rstrip(_CLOSERS).endswith(_ENDS)


def _edges(surface: bytes) -> tuple[Script, Script]:
    text = surface.decode(errors="replace")
    return (_script(text[0]), _script(text[-1])) if text else (Script.SPACE, Script.SPACE)


def _script(char: str) -> Script:
    code = ord(char)
    for script, blocks in _BLOCKS if code > 0x3000 else ():
        if any(first <= code <= last for first, last in blocks):
            return script
    if char == "\ufffd":
        return Script.PART
    if char.isspace():
        return Script.SPACE
    return Script.LETTER if char.isalnum() or char == "_" else Script.SYMBOL


def save_vocab(file: Path, vocab: Vocab) -> None:
    """Write ``vocab`` as an .npz archive, the same bytes for the same vocabulary.

    ``scripts`` is left out: the hash of a score covers these bytes, so that scores on corpora prepared before it was
    known would no longer compare. ``Prepared`` reads it off the tokenizer, whose hash the shards name.
    """
    with file.open("wb") as stream:
        np.savez(
            stream,
            n_reserved=np.int64(vocab.n_reserved),
            n_bytes=vocab.n_bytes,
            starts_word=vocab.starts_word,
            ends_sentence=vocab.ends_sentence,
        )


def load_vocab(file: Path) -> Vocab:
    """Read what ``save_vocab`` wrote. Raises ``DataError`` where the file is missing or is none."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            n_bytes = arrays["n_bytes"]
            return Vocab(
                size=len(n_bytes),
                n_reserved=int(arrays["n_reserved"]),
                n_bytes=n_bytes,
                starts_word=arrays["starts_word"],
                ends_sentence=arrays["ends_sentence"],
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is no vocabulary ({error}); delete its folder and prepare again") from None
