"""What a vocabulary tells of its tokens: beginnings of words, ends of sentences, scripts."""

from pathlib import Path

import numpy as np

from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.vocab import save_vocab, tabulate
from llmtrain.types import Script
from tokenizing import build


def test_words_and_sentences_are_told_by_their_tokens(tmp_path: Path) -> None:
    vocab = build(Bytes(n_sentinels=0), tmp_path / "t").vocab()
    starts = {bytes([i]) for i in np.flatnonzero(vocab.starts_word) - vocab.n_reserved}
    ends = {bytes([i]) for i in np.flatnonzero(vocab.ends_sentence) - vocab.n_reserved}
    assert {b" ", b"\n", b"("} <= starts and not {b"a", b"9", b"_", b"\xe3", b"\x81"} & starts
    assert ends == {b".", b"!", b"?"}


def test_scripts_of_a_token_are_those_of_its_first_and_its_last_character() -> None:
    surfaces = {
        "": (Script.SPACE, Script.SPACE),
        " 猫": (Script.SPACE, Script.KANJI),
        "日々": (Script.KANJI, Script.KANJI),
        "𠮟る": (Script.KANJI, Script.HIRAGANA),
        "コーヒー": (Script.KATAKANA, Script.KATAKANA),
        "・ｶ": (Script.SYMBOL, Script.KATAKANA),
        "ab1": (Script.LETTER, Script.LETTER),
        "４_": (Script.LETTER, Script.LETTER),
        "。\u3000": (Script.SYMBOL, Script.SPACE),
    }
    parts = ["の".encode()[1:], "のの".encode()[:4]]
    vocab = tabulate(16, [*(s.encode() for s in surfaces), *parts])
    assert vocab.scripts is not None and vocab.scripts.dtype == np.uint8
    expected = [*surfaces.values(), (Script.PART, Script.PART), (Script.HIRAGANA, Script.PART)]
    assert vocab.scripts.tolist() == [[Script.SPACE] * 2] * 16 + [list(pair) for pair in expected]
    assert tabulate(16, ["日々".encode(), b"a"]).scripts is None  # without kana it is not Japanese


def test_a_vocabulary_file_is_the_same_with_and_without_scripts(tmp_path: Path) -> None:
    """The hash of a score covers it: one on a corpus that was prepared earlier must still compare."""
    vocab = tabulate(16, ["の".encode()])
    save_vocab(tmp_path / "a.npz", vocab)
    save_vocab(tmp_path / "b.npz", vocab._replace(scripts=None))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
