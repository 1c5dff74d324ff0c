"""Fill-in-the-middle: documents whose middle is moved to their end, so that a causal model learns to infill."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from llmtrain import philox
from llmtrain.config import config
from llmtrain.nn.generate import Sampling, generate
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Objective, Sample
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.objectives.denoising import longest_document, shown
from llmtrain.objectives.noise import real
from llmtrain.types import BOS, FIM, NO_DOC, PAD, Row, Vocab

PREFIX, MIDDLE, SUFFIX, _ = FIM


@config
class FillInTheMiddle(CausalLM):
    """FIM (Bavarian et al. 2022) by document, on tokens, scored everywhere as causal language modelling is.

    Two cuts, uniform and independent, make a prefix, a middle and a suffix. PSM is ``PREFIX prefix SUFFIX suffix
    MIDDLE middle``; SPM is ``PREFIX SUFFIX suffix MIDDLE prefix middle``. BOS stays in front, and the BOS of the next
    document ends the middle. A document gains three tokens, so the row gives up as many at its end before anything is
    moved: no middle is cut off. A document that begins in the last few tokens of a row stays as it is.
    """

    rate: float = 0.5  # of the documents
    spm: float = 0.5  # of them, how many begin with the suffix

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rate", "spm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def likelihood(self) -> bool:
        return False

    @property
    def score_name(self) -> str:
        return f"fim_r{100 * self.rate:g}_nats_per_token"

    def evaluations(self) -> tuple[Objective, ...]:
        """As a causal model on text as it is, which compares with other causal models; then with every middle moved."""
        return CausalLM(), dataclasses.replace(self, rate=1.0)

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> CausalBatch:
        moved = move_middles(row, rate=self.rate, spm=self.spm, rng=rng)
        return super().example(moved, vocab, seq_len=seq_len, rng=rng)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        """ln V a token, and of a row whose middle was moved the places of the two marks.

        The row's first token is only read, and tells whether it was moved. Of m = seq_len - 2 tokens with cuts a <= b,
        the reader sees marks after a and m - b tokens (PSM), or after 0 and m - b (SPM): ``cut_entropy``.
        """
        nats, m = math.log(vocab.size - vocab.n_reserved), seq_len - 2
        return ((seq_len - 2 * self.rate) * nats + self.rate * cut_entropy(m, self.spm)) / seq_len

    def samples(
        self,
        model: Model,
        rows: Sequence[Row],
        vocab: Vocab,
        decode: Callable[[Sequence[int]], str],
        *,
        seq_len: int,
        seed: int,
    ) -> list[Sample]:
        """The longest document of each row without its middle third, and the middle that the model writes."""
        out = []
        for i, row in enumerate(rows):
            ids = longest_document(row).ids
            bos, text = ids[: int(ids[0] == BOS)], ids[int(ids[0] == BOS) :]
            a, b = len(text) // 3, len(text) - len(text) // 3
            prompt = np.concatenate((bos, rearranged(text, a, b, spm=False)))[
                : len(ids) + 3 - (b - a)
            ].tolist()
            made = generate(
                model,
                prompt,
                n_tokens=b - a + 8,
                n_reserved=vocab.n_reserved,
                sampling=Sampling(),
                rng=philox.generator(seed, "samples", 0, i),
            )
            out.append(Sample(shown(prompt, vocab, decode), decode(made)))
        return out


def move_middles(row: Row, *, rate: float, spm: float, rng: np.random.Generator) -> Row:
    """The row with the middles of some documents moved, as long as before."""
    ids, doc = real(row)
    starts = np.flatnonzero(np.append(True, doc[1:] != doc[:-1]))
    chosen = rng.random(len(starts)) < rate
    # three tokens a document, which come off the end: room for BOS and one token must be left
    chosen &= starts + 3 * np.cumsum(chosen) + 2 <= len(row.ids)
    n = min(len(ids), len(row.ids) - 3 * int(chosen.sum()))
    out_ids, out_doc = [], []
    for start, end, moved in zip(starts, np.append(starts[1:], n), chosen, strict=True):
        part = ids[start : min(end, n)]
        if moved:
            bos = int(part[0] == BOS)
            a, b = np.sort(rng.integers(0, len(part) - bos + 1, 2)).tolist()
            text = rearranged(part[bos:], a, b, spm=rng.random() < spm)
            part = np.concatenate((part[:bos], text))
        out_ids.append(part)
        out_doc.append(np.full(len(part), doc[start]))
    short = len(row.ids) - sum(map(len, out_ids))
    return row._replace(
        ids=np.pad(np.concatenate(out_ids), (0, short), constant_values=PAD),
        doc=np.pad(np.concatenate(out_doc), (0, short), constant_values=NO_DOC),
    )


def rearranged(text: np.ndarray, a: int, b: int, *, spm: bool) -> np.ndarray:
    """``text`` with its tokens from ``a`` to ``b`` last."""
    head = (text[:0], text[:a]) if spm else (text[:a], text[:0])
    return np.concatenate(([PREFIX], head[0], [SUFFIX], text[b:], [MIDDLE], head[1], text[a:b]))


def cut_entropy(m: int, spm: float) -> float:
    """Nats of the marks' places in a document of ``m`` tokens that was cut twice.

    A pair of cuts a < b has probability 2 / (m + 1)^2, one with a = b half of that. With a = 0 PSM looks like SPM.
    """
    b = np.arange(m + 1)
    at_zero = (1 - spm) * np.minimum(b + 1, 2) + spm * (2 * b + 1)
    apart, same = np.full(1, 2 * (1 - spm)), np.full(1, 1 - spm)
    p = np.concatenate((at_zero, apart, same)) / (m + 1) ** 2
    often = np.concatenate((np.ones(m + 1), [m * (m - 1) // 2, m]))
    return float(-(often * p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum())
