"""Examples in words, for tests and documentation that can be read: a vocabulary of a few words, and rows spelt out."""

from pathlib import Path

import numpy as np

from llmtrain.types import BOS, FIM, IGNORE, MASK, MODES, N_FIXED, PAD, Row, Vocab

DOCS = Path(__file__).parents[1] / "docs" / "objectives_denoising.md"
# the second document begins within the row, so it has its BOS; of the first that was in the row before
TEXT = "thank you for inviting me to your party . see you there | <bos> we will come at eight ."
WORDS = sorted(set(TEXT.split()) - {"|", "<bos>"})
N_RESERVED = N_FIXED + 8
NAMES = {
    **{word: N_RESERVED + i for i, word in enumerate(WORDS)},
    **{f"<{i}>": N_FIXED + i for i in range(8)},
    **dict(zip(("[R]", "[S]", "[X]"), MODES, strict=False)),
    **dict(zip(("<prefix>", "<middle>", "<suffix>"), FIM, strict=False)),
    "<bos>": BOS,
    "<mask>": MASK,
    "<pad>": PAD,
    ".....": IGNORE,
}
SPELT = {i: name for name, i in NAMES.items()}
SIZE = N_RESERVED + len(WORDS)
SPOKEN = Vocab(
    size=SIZE,
    n_reserved=N_RESERVED,
    n_bytes=np.array([0] * N_RESERVED + [len(word) + 1 for word in WORDS], np.int32),
    starts_word=np.arange(SIZE) >= N_RESERVED,
    ends_sentence=np.arange(SIZE) == NAMES["."],
)


def row(text: str = TEXT) -> Row:
    """Words apart by spaces, documents by bars."""
    documents = [part.split() for part in text.split("|")]
    ids = [NAMES[word] for part in documents for word in part]
    return Row(np.array(ids), np.repeat(np.arange(len(documents)), [len(part) for part in documents]))


def spelt(ids: np.ndarray, doc: np.ndarray | None = None) -> str:
    """The same back."""
    out = []
    for i, token in enumerate(ids.tolist()):
        if doc is not None and i and doc[i] != doc[i - 1]:
            out.append("|")
        out.append(SPELT[token])
    return " ".join(out)
