"""Denoising: text with some of it taken out, from which a model writes what is missing."""

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from llmtrain import philox
from llmtrain.config import config
from llmtrain.nn.generate import Sampling, generate
from llmtrain.nn.model import Model, ModelConfig, TokenHead
from llmtrain.objectives import layouts
from llmtrain.objectives.base import Beginning, Loss, Objective, Pass, Sample
from llmtrain.objectives.layouts import Continued, Layout, Shape, Translated
from llmtrain.objectives.noise import Noise, SpanNoise, real
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.types import BOS, FIM, IGNORE, MASK, MODES, N_FIXED, Row, Visibility, Vocab


@config
class Denoiser(Objective):
    """What denoising by one noise and by several have in common.

    ``encoder_decoder`` reads the source with an encoder of its own. ``prefix`` has one trunk, in which the source of a
    document is seen by all of it. In ``causal`` the same stream is read from left to right.
    """

    layout: Layout = "encoder_decoder"
    z_loss: float = 0.0  # weight of the squared log-partition (PaLM)

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"z_loss must not be negative, got {self.z_loss}")

    @property
    def sees(self) -> Visibility:
        return layouts.SEES[self.layout]

    @property
    def encoder(self) -> bool:
        return self.layout == "encoder_decoder"

    @property
    def score_unit(self) -> str:
        return "nats/token"

    def head(self, d_model: int, vocab_size: int) -> TokenHead:
        return TokenHead(d_model, vocab_size)

    def loss(self, model: Model, batch: Translated | Continued) -> Loss:
        h, targets, routing = layouts.read(model, batch)
        out = linear_cross_entropy(h, model.head.get_parameter("weight"), targets, z_loss=self.z_loss)
        n_rows = len(batch.key)
        nats = out.nats.unflatten(0, (n_rows, -1)).sum(1)
        counts = (targets != IGNORE).unflatten(0, (n_rows, -1)).sum(1).to(nats.dtype)
        return Loss(out.total / batch.scored.sum().to(out.total), nats, counts, routing)


@config
class Denoising(Denoiser):
    """One kind of noise: T5's, if no other is given."""

    noise: Noise = SpanNoise()

    @property
    def score_name(self) -> str:
        return f"denoising_{self.noise.name}_nats_per_token"

    def raw_len(self, seq_len: int) -> int:
        """The most raw tokens whose source and target both fit into ``seq_len``, or together where they share a stream.

        Raises ValueError where not even two do.
        """
        return longest(self, seq_len)

    def shape(self, seq_len: int) -> Shape:
        return self.shape_of(self.raw_len(seq_len))

    def shape_of(self, n: int) -> Shape:
        """What ``n`` raw tokens become."""
        return layouts.shape(self.layout, *self.lengths(n))

    def lengths(self, n: int) -> tuple[int, int]:
        """Of the source, its mode included, and of the target."""
        source, target = self.noise.lengths(n)
        return source + (self.noise.mode is not None), target

    def scored(self, seq_len: int) -> int:
        return self.shape(seq_len).targets

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        source, _ = self.lengths(self.raw_len(seq_len))
        return layouts.passes(self.layout, self.shape(seq_len), source)

    def check(self, cfg: ModelConfig, *, seq_len: int, one_document: bool) -> None:
        super().check(cfg, seq_len=seq_len, one_document=one_document)
        self.raw_len(seq_len)

    def check_sentinels(self, n_sentinels: int, seq_len: int) -> None:
        need = self.noise.n_sentinels(self.raw_len(seq_len))
        if need > n_sentinels:
            raise ValueError(
                f"{self.score_name} at seq_len={seq_len} needs {need} sentinels and the tokenizer has {n_sentinels}: "
                f"set tokenizer.n_sentinels={need} or more, or a smaller seq_len"
            )

    def example(
        self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator
    ) -> Translated | Continued:
        of = self.shape(seq_len)
        streams = self.noise.moded(row, vocab, rng)
        return layouts.arrange(
            streams, self.layout, of, scored=float(of.targets), key=int(rng.integers(2**62))
        )

    def beginning(self, context: Sequence[int]) -> Beginning:
        """As text whose end is noise."""
        return layouts.beginning(*self.noise.ending(context), self.layout)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        """The noise's own, over the targets of a row; the terminator is known once all noise is told."""
        n = self.raw_len(seq_len)
        nats = self.noise.floor_nats(n, math.log(vocab.size - vocab.n_reserved))
        return nats / self.lengths(n)[1]

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
        """The longest document of each row, with its noise, and what the model makes of that."""
        out = []
        for i, row in enumerate(rows):
            rng = philox.generator(seed, "samples", 0, i)
            source, _, target, _ = self.noise.moded(longest_document(row), vocab, rng)
            made = generate(
                model,
                [BOS] if self.encoder else [*source.tolist(), BOS],
                n_tokens=len(target) + 8,
                n_reserved=vocab.n_reserved,
                sampling=Sampling(),
                rng=rng,
                prefix=len(source) if self.layout == "prefix" else 0,
                source=[*source.tolist(), BOS] if self.encoder else None,
                also=[token for token in source.tolist() if N_FIXED <= token < vocab.n_reserved],
            )
            out.append(Sample(shown(source.tolist(), vocab, decode), shown(made, vocab, decode)))
        return out


@functools.cache
def longest(objective: Denoising, seq_len: int) -> int:
    """``Denoising.raw_len``, once found."""

    def need(n: int) -> int:
        return max(objective.shape_of(n))

    most = 4
    while need(most) <= seq_len:
        most *= 2
    n = bisect_right(range(most), seq_len, lo=2, key=need) - 1
    if n < 2:
        raise ValueError(
            f"seq_len={seq_len} is too short for {objective.score_name}: give at least {need(2)}"
        )
    return n


def longest_document(row: Row) -> Row:
    """It alone; of several as long as each other the first."""
    ids, doc = real(row)
    starts = np.flatnonzero(np.diff(doc, prepend=doc[0] - 1))
    sizes = np.diff(starts, append=len(doc))
    start, size = starts[sizes.argmax()], sizes.max()
    return row._replace(ids=ids[start : start + size], doc=np.zeros(size, np.int64))


NAMES = {
    BOS: "",
    MASK: "<mask>",
    **dict(zip(MODES, ("[R] ", "[S] ", "[X] "), strict=False)),
    **dict(zip(FIM, ("<prefix>", "<middle>", "<suffix>"), strict=False)),
}


def shown(ids: Sequence[int], vocab: Vocab, decode: Callable[[Sequence[int]], str]) -> str:
    """Text in which sentinels are <0>, <1>, ..., and the other reserved ids have names; BOS is left out."""
    out, run = [], []
    for token in [*ids, BOS]:
        if token >= vocab.n_reserved:
            run.append(token)
            continue
        out.append(decode(run) if run else "")
        out.append(NAMES.get(token, f"<{token - N_FIXED}>"))
        run = []
    return "".join(out)
