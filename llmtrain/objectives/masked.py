"""Masked language modelling: tokens that were hidden, from all the others of their document."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from llmtrain import philox
from llmtrain.config import config
from llmtrain.nn.model import Model, ModelConfig, TokenHead
from llmtrain.objectives.base import Loss, Objective, Pass, Sample, seq_of
from llmtrain.objectives.masking import Shares, Unit, choose, corrupt, units_of
from llmtrain.objectives.words import share_of_beginnings, share_telling_words
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.types import IGNORE, MASK, Row, Seq, Visibility, Vocab

_TELLS_WORDS = 0.35  # the least share of pieces that tell where a word begins
_SHOWN, _LIKELIEST = 24, 3  # of a sample: places, and tokens a place


class MaskedBatch(NamedTuple):
    text: Seq  # with what stands in the place of the chosen tokens
    at: Int[Tensor, "B N"]  # where they are, ascending; 0 beyond those that a row has
    targets: Int[Tensor, "B N"]  # what they were; IGNORE beyond
    key: Int[Tensor, " B"]  # of dropout


@config
class MaskedLM(Objective):
    """BERT's cloze task (Devlin et al. 2019), with masks drawn anew for every row (RoBERTa, Liu et al. 2019).

    Each row scores exactly round(rate x seq_len) tokens of text, or all of them where it has fewer; the head runs on
    those alone. 30% learns better than 15% (Wettig et al. 2023; ModernBERT), but scores are made at 15% in any case.
    """

    rate: float = 0.3  # share of a row that is scored
    mask: float = 0.8  # of the scored: share that the mask hides
    random: float = 0.1  # of the scored: share replaced by a random token; the rest is left as it is
    unit: Unit = "token"  # what is chosen whole
    span: float = (
        1.0  # mean length in units of what is chosen: 1 for single ones, more for spans (SpanBERT: 3.8)
    )
    z_loss: float = 0.0  # weight of the squared log-partition (PaLM)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be above 0 and below 1, got {self.rate}; 0.15 to 0.5 is usual")
        if self.mask < 0 or self.random < 0 or not 0 < self.mask + self.random <= 1:
            raise ValueError(
                f"mask={self.mask} and random={self.random} must not be negative, and be at most 1 together but not 0 "
                "(the model would copy): 0.8 and 0.1 are BERT's"
            )
        if not 1 <= self.span < math.inf:
            raise ValueError(f"span must be at least 1, got {self.span}; 1 chooses single units")
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"z_loss must not be negative, got {self.z_loss}; 0 leaves it out")

    @property
    def sees(self) -> Visibility:
        return Visibility.BIDIRECTIONAL

    @property
    def score_name(self) -> str:
        """By what decides how hard the task is, as in ``mlm30_word_span3_nats_per_token``."""
        parts = [f"mlm{100 * self.rate:g}"]
        if (self.mask, self.random) != (0.8, 0.1):
            parts.append(f"mask{100 * self.mask:g}_random{100 * self.random:g}")
        if self.unit == "word":
            parts.append("word")
        if self.span != 1:
            parts.append(f"span{self.span:g}")
        return "_".join([*parts, "nats_per_token"])

    @property
    def score_unit(self) -> str:
        return "nats/token"

    def evaluations(self) -> tuple[Objective, ...]:
        """First BERT's 15% of single tokens, so that runs compare however they were trained; then as trained."""
        standard, own = MaskedLM(rate=0.15), dataclasses.replace(self, z_loss=0.0)
        return (standard,) if own == standard else (standard, own)

    @property
    def fills(self) -> bool:
        return True

    def raw_len(self, seq_len: int) -> int:
        return seq_len

    def scored(self, seq_len: int) -> int:
        return round(self.rate * seq_len)

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        return (Pass("trunk", seq_len, scored=self.scored(seq_len)),)

    def check(self, cfg: ModelConfig, *, seq_len: int, one_document: bool) -> None:
        super().check(cfg, seq_len=seq_len, one_document=one_document)
        least = min((self, MaskedLM(rate=0.15)), key=lambda one: one.rate)
        if not least.scored(seq_len):
            raise ValueError(
                f"seq_len={seq_len} leaves no token to score at {100 * least.rate:g}%: set it to at least "
                f"{math.ceil(1 / least.rate)}"
            )

    def check_vocab(self, vocab: Vocab, seq_len: int) -> None:
        """Words need a vocabulary whose tokens tell where words begin.

        Of the pieces of English or Python 38% or more do, of Japanese 98%, of Chinese 16% or less.
        """
        if self.unit == "word" and (share := share_telling_words(vocab)) < _TELLS_WORDS:
            raise ValueError(
                f"objective.unit=word needs a tokenizer that tells words, but only {share:.0%} of its pieces of "
                f"several bytes do, by a space or as Japanese (at least {_TELLS_WORDS:.0%} is needed; Chinese and Thai "
                "have neither spaces nor changes of script, and bytes are no such pieces): set objective.unit=token, "
                "with objective.span=3 for spans"
            )

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> MaskedBatch:
        n = self.scored(seq_len)
        at = choose(units_of(row, vocab, self.unit), n, span=self.span, rng=rng)
        ids = corrupt(row.ids, at, Shares(self.mask, self.random), vocab, rng)
        places, targets = np.zeros(n, np.int64), np.full(n, IGNORE)
        places[: len(at)], targets[: len(at)] = at, row.ids[at]
        text = seq_of(ids, row.doc, True)
        return MaskedBatch(text, places, targets, rng.integers(2**62))  # type: ignore[arg-type]

    def head(self, d_model: int, vocab_size: int) -> TokenHead:
        return TokenHead(d_model, vocab_size)

    def loss(self, model: Model, batch: MaskedBatch) -> Loss:
        h, routing = model(batch.text, key=batch.key)
        n_rows, n_tokens, _ = h.shape
        first = torch.arange(0, n_rows * n_tokens, n_tokens, device=h.device)[:, None]
        # the gradient of index_select is four times as fast on a CPU as that of h[rows, at]
        scored = h.flatten(0, 1).index_select(0, (first + batch.at).flatten())
        table = model.head.get_parameter("weight")
        out = linear_cross_entropy(scored, table, batch.targets.flatten(), z_loss=self.z_loss)
        nats = out.nats.unflatten(0, batch.targets.shape).sum(1)
        counts = (batch.targets != IGNORE).sum(1)
        return Loss(out.total / batch.targets.numel(), nats, counts.to(nats.dtype), routing)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        """Of hidden tokens ln V; of those shown, the entropy of "kept, or one of V at random" given what is shown.

        Exact for tokens and spans of them. Which words are hidden says where words begin: with ``unit=word``, unless
        every token begins one, this is a lower bound, that of a predictor who is told it, and which tokens were kept.

        Where script changes begin words, neighbours decide together, and no count of tokens bounds it. But that
        predictor learns of a row x of T tokens only B, where words begin, on which alone the choice of places depends:
        H(hidden | shown, B) >= H(x) - H(B) - (T - h) ln V >= h ln V - T H2(p), for a share p that begins words.
        """
        n = self.scored(seq_len)
        hidden, random = Shares(self.mask, self.random).counts(n)
        shown, size = n - hidden, vocab.size - vocab.n_reserved
        if self.unit == "word" and vocab.scripts is not None:
            told = seq_len * _entropy(share_of_beginnings(vocab))
            return max(0.0, (hidden * math.log(size) - told) / n)
        begin = int(vocab.starts_word[vocab.n_reserved :].sum())
        if self.unit == "word" and 0 < begin < size:
            return hidden / n * math.log(min(begin, size - begin))
        other = random / (shown * size) if shown else 0.0  # the probability of each token but the one shown
        same = 1 - (size - 1) * other
        given = -same * math.log(same) - ((size - 1) * other * math.log(other) if other else 0.0)
        return hidden / n * math.log(size) + shown / n * given

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
        """The beginning of each row with numbered places, and what was there beside the model's likeliest tokens."""
        out = []
        for i, row in enumerate(rows):
            rng = philox.generator(seed, "samples", 0, i)
            text, at, targets, _ = self.example(row, vocab, seq_len=seq_len, rng=rng)
            ids, places = np.asarray(text.ids), np.asarray(at)[np.asarray(targets) != IGNORE]
            likeliest = _likeliest(model, text, places[:_SHOWN], vocab.n_reserved)
            lines = [
                f"{_place(k)} was {_quoted(decode([int(row.ids[p])]))}; likeliest "
                + ", ".join(f"{_quoted(decode([token]))} {share:.0%}" for token, share in found)
                for k, (p, found) in enumerate(zip(places, likeliest, strict=False), 1)
            ]
            out.append(Sample(_with_places(ids, places, decode), "\n".join(lines)))
        return out


def _entropy(p: float) -> float:
    """H2 in nats."""
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


@torch.no_grad()
def _likeliest(model: Model, text: Seq, places: np.ndarray, n_reserved: int) -> list[list[tuple[int, float]]]:
    """Of each place, the likeliest tokens of text with their probabilities."""
    device = model.embed.weight.device
    h = model(Seq(*(torch.tensor(np.asarray(x), device=device)[None] for x in text))).h
    p = model.head(h[0, torch.tensor(places, device=device)]).softmax(-1)
    p[:, :n_reserved] = 0
    top = p.topk(min(_LIKELIEST, p.shape[1] - n_reserved))
    return [
        list(zip(tokens, shares, strict=True))
        for tokens, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _with_places(ids: np.ndarray, places: np.ndarray, decode: Callable[[Sequence[int]], str]) -> str:
    """The text up to the place after the last one shown; where a token is shown that may be wrong, with that token."""
    out, start = [], 0
    for k, p in enumerate(places[:_SHOWN].tolist(), 1):
        shown = None if ids[p] == MASK else decode([int(ids[p])])
        out += [decode(ids[start:p].tolist()), _place(k, shown)]
        start = p + 1
    end = int(places[_SHOWN]) if len(places) > _SHOWN else len(ids)
    return "".join([*out, decode(ids[start:end].tolist()), " ..." if end < len(ids) else ""])


def _place(k: int, shown: str | None = None) -> str:
    return f"⟦{k}⟧" if shown is None else f"⟦{k}:{_quoted(shown)}⟧"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # spaces and line breaks are seen
