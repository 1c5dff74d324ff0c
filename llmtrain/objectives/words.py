"""Where words begin: at spaces and, in Japanese, where the script changes. Numpy alone."""

import numpy as np

from llmtrain.types import Script, Vocab

# least share with kana, of CJK pieces: Japanese has 81 to 97%, three parts of Chinese with two of it 37%, Chinese none
_MOSTLY_KANA = 0.6
_KANA = (Script.HIRAGANA, Script.KATAKANA)
_JAPANESE = (Script.KANJI, *_KANA)
# what a word goes on with: kanji may be followed by their endings in kana, as in 食べる
_JOINED = {
    (Script.KANJI, Script.KANJI),
    (Script.KANJI, Script.HIRAGANA),
    (Script.HIRAGANA, Script.HIRAGANA),
    (Script.KATAKANA, Script.KATAKANA),
}


def _parts(last: Script, first: Script) -> bool:
    """Whether a word ends after ``last`` and before ``first``, for all that these two tell.

    Where neither is Japanese, ``starts_word`` tells alone, so that English beside Japanese has the words that it has
    by itself. Nobody knows what script part of a character is of: it belongs to what stands on either side.
    """
    japanese = last in _JAPANESE or first in _JAPANESE
    return japanese and Script.PART not in (last, first) and (last, first) not in _JOINED


PARTS = np.array([[_parts(last, first) for first in Script] for last in Script])  # [last, first]


def begins_word(ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """[M] bool: of ``ids`` [M] that follow one another, which begin a word; the first one has nothing before it.

    The changes of script cut Japanese roughly into bunsetsu, a word with its particles: 吾輩は|猫である|。
    """
    begins = vocab.starts_word[ids]
    if vocab.scripts is not None:
        first, last = vocab.scripts[ids].T
        begins[1:] |= PARTS[last[:-1], first[1:]]
    return begins


def share_telling_words(vocab: Vocab) -> float:
    """Of the pieces of several bytes, the share that tells where words begin: those after spaces, and Japanese ones.

    Pieces of one byte are left out: bytes and most punctuation are in every vocabulary. Kanji count only where most
    CJK pieces of several characters (which take more than 4 bytes) have kana at an edge: Chinese has none, and its
    script changes at the ends of sentences alone. Single characters say little of the text: there are far more kanji.
    """
    tells = vocab.starts_word
    if vocab.scripts is not None:
        first, last = vocab.scripts.T
        kana = np.isin(first, _KANA) | np.isin(last, _KANA)
        cjk = np.isin(first, _JAPANESE) | np.isin(last, _JAPANESE)
        several = cjk & (vocab.n_bytes > 4)
        if several.any() and kana[several].mean() >= _MOSTLY_KANA:
            tells = tells | cjk
    pieces = vocab.n_bytes > 1
    return float(tells[pieces].mean()) if pieces.any() else 0.0


def share_of_beginnings(vocab: Vocab) -> float:
    """How likely a token begins a word, where it and the one before are drawn uniformly."""
    begins = vocab.starts_word[vocab.n_reserved :]
    if vocab.scripts is None:
        return float(begins.mean())
    first, last = vocab.scripts[vocab.n_reserved :].T
    before = np.bincount(last, minlength=len(Script)) / len(last)
    return float(np.maximum(begins, (before @ PARTS)[first]).mean())
