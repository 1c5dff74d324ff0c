"""Several kinds of noise in one run, in turn: UL2's mixture of denoisers is a config of it."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from llmtrain.config import config
from llmtrain.nn.model import Model, ModelConfig
from llmtrain.objectives import layouts
from llmtrain.objectives.base import Beginning, Objective, Pass, Sample
from llmtrain.objectives.denoising import Denoiser, Denoising
from llmtrain.objectives.layouts import Continued, Shape, Translated
from llmtrain.objectives.noise import Noise, SuffixNoise
from llmtrain.types import Row, Vocab


@config
class Mixture(Denoiser):
    """Row k of the run gets noise k mod K (Tay et al. 2022, UL2); a noise that stands twice comes twice as often.

    Every row has the raw length of the noise that takes the most; the others drop its end, and are padded to the
    longest streams. It is scored noise by noise, never as a mixture.
    """

    noises: tuple[Noise, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noises:
            raise ValueError("noises is empty: give at least one")
        names: dict[str, Noise] = {}
        for noise in self.noises:
            if names.setdefault(noise.name, noise) != noise:
                raise ValueError(
                    f"noises has two kinds of {noise.name}, whose scores would share a name: give them one mode"
                )

    @functools.cached_property
    def denoisers(self) -> tuple[Denoising, ...]:
        """One for each place of the pattern."""
        return tuple(Denoising(noise=n, layout=self.layout, z_loss=self.z_loss) for n in self.noises)

    @property
    def score_name(self) -> str:
        return "denoising_mixture_nats_per_token"

    def evaluations(self) -> tuple[Objective, ...]:
        return tuple(dict.fromkeys(self.denoisers))

    def raw_len(self, seq_len: int) -> int:
        return max(one.raw_len(seq_len) for one in self.denoisers)

    def shape(self, seq_len: int) -> Shape:
        return common(self, seq_len)[0]

    def scored(self, seq_len: int) -> float:
        return common(self, seq_len)[1]

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        """One for each place of the pattern, of the padded length: that is what is computed."""
        of, out = self.shape(seq_len), tuple[Pass, ...]()
        for one in self.denoisers:
            source, _ = one.lengths(one.raw_len(seq_len))
            out += layouts.passes(self.layout, of, source, 1 / len(self.denoisers))
        return out

    def check(self, cfg: ModelConfig, *, seq_len: int, one_document: bool) -> None:
        for one in self.denoisers:
            one.check(cfg, seq_len=seq_len, one_document=one_document)

    def check_sentinels(self, n_sentinels: int, seq_len: int) -> None:
        """Names the noise that needs the most sentinels."""
        most = max(self.denoisers, key=lambda one: one.noise.n_sentinels(one.raw_len(seq_len)))
        most.check_sentinels(n_sentinels, seq_len)

    def example(
        self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator
    ) -> Translated | Continued:
        one = self.denoisers[row.number % len(self.denoisers)]
        n = one.raw_len(seq_len)
        streams = one.noise.moded(Row(row.ids[:n], row.doc[:n], row.number), vocab, rng)
        of, scored = common(self, seq_len)
        return layouts.arrange(streams, self.layout, of, scored=scored, key=int(rng.integers(2**62)))

    def beginning(self, context: Sequence[int]) -> Beginning:
        """By the noise that takes out endings, or else by the first."""
        suffixes = (one for one in self.denoisers if isinstance(one.noise, SuffixNoise))
        return next(suffixes, self.denoisers[0]).beginning(context)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        """The mean of the floors, each as often as it is scored."""
        nats = sum(one.floor(vocab, seq_len) * one.scored(seq_len) for one in self.denoisers)
        return nats / (len(self.denoisers) * self.scored(seq_len))

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
        """Each row by the next kind of noise."""
        out = []
        for i, row in enumerate(rows):
            one = self.denoisers[i % len(self.denoisers)]
            out += one.samples(model, [row], vocab, decode, seq_len=seq_len, seed=seed + i)
        return out


@functools.cache
def common(mixture: Mixture, seq_len: int) -> tuple[Shape, float]:
    """The shape that holds each kind of row, and how many positions one scores on average."""
    shapes = [one.shape(seq_len) for one in mixture.denoisers]
    widest = Shape(*(max(sizes) for sizes in zip(*shapes, strict=True)))
    return widest, sum(of.targets for of in shapes) / len(shapes)
