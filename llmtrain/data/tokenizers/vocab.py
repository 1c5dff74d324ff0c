"""The arrays over a vocabulary that objectives and scores use, made of what each id stands for."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmtrain.errors import DataError
from llmtrain.types import Vocab

_CLOSERS = "\"')]}»”’」』）】*_`"
_ENDS = (".", "!", "?", "…", "。", "！", "？", "؟", "।")


def tabulate(n_reserved: int, surfaces: Sequence[bytes]) -> Vocab:
    """The vocabulary in which id ``n_reserved + i`` stands for ``surfaces[i]``.

    ``starts_word`` and ``ends_sentence`` are read off a token alone, so they are a guess. A token starts a word
    unless it begins inside one, with a letter, a digit, an underscore or part of a character: right where words
    are spaced, of no use in Japanese. A token ends a sentence if it ends in a full stop or the like, closing marks
    aside; that of an abbreviation counts too.
    """
    none = np.zeros(n_reserved, dtype=bool)
    return Vocab(
        size=n_reserved + len(surfaces),
        n_reserved=n_reserved,
        n_bytes=np.array([0] * n_reserved + [len(s) for s in surfaces], dtype=np.int32),
        starts_word=np.concatenate([none, np.array([_starts_word(s) for s in surfaces], dtype=bool)]),
        ends_sentence=np.concatenate([none, np.array([_ends_sentence(s) for s in surfaces], dtype=bool)]),
    )


def _starts_word(surface: bytes) -> bool:
    first = surface.decode(errors="replace")[:1]
    return first not in ("", "\ufffd", "_") and not first.isalnum()


def _ends_sentence(surface: bytes) -> bool:
    return surface.decode(errors="replace").rstrip().rstrip(_CLOSERS).endswith(_ENDS)


def save_vocab(file: Path, vocab: Vocab) -> None:
    """Write ``vocab`` as an .npz archive, the same bytes for the same vocabulary."""
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
