"""How contrastive models are scored: by finding the next span of a held-out document among a fixed number of others."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain import philox
from llmtrain.config import config, free
from llmtrain.errors import ConfigError
from llmtrain.nn.base import HeadModule
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Loss, Objective, Pass, Sample
from llmtrain.objectives.embedding import embed, head_of
from llmtrain.objectives.pairs import Pairs, pair_of, raw_len, strangers
from llmtrain.ops.infonce import cosines, info_nce, misses
from llmtrain.types import BOS, NO_DOC, Row, Seq, Visibility, Vocab

_BLOCK = 256  # rows that are ranked at a time
_SHOWN = 3  # neighbours in a sample


@config
class Retrieval(Objective):
    """The second of two adjacent spans, found from the first among itself and exactly ``negatives`` others.

    Spans that lie side by side share no token, so copying finds nothing, guessing has a closed form, and runs are
    compared on the same task whatever pairs they were trained on (two views of one dropout would be equal here). The
    others are the second spans of the next rows, in one fixed order, that are of another document and not alike.
    """

    of: Objective = free()  # the run's own, which says what the model sees and how it embeds
    negatives: int
    measure: Literal["nats", "misses"]  # InfoNCE at the run's temperature, or 1 - recall@1

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"eval_negatives must be at least 1, got {self.negatives}")

    @property
    def rows(self) -> Literal["packed", "document"]:
        return "document"

    @property
    def accumulates(self) -> bool:
        return False

    @property
    def together(self) -> bool:
        return True

    @property
    def sees(self) -> Visibility:
        return self.of.sees

    @property
    def score_name(self) -> str:
        what = {"nats": "nats_per_pair", "misses": "one_minus_recall_at_1"}[self.measure]
        return f"infonce{self.negatives}_{what}"

    @property
    def score_unit(self) -> str:
        return {"nats": "nats/pair", "misses": "share"}[self.measure]

    def raw_len(self, seq_len: int) -> int:
        return raw_len("adjacent", seq_len)

    def scored(self, seq_len: int) -> int:
        return 1

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        return self.of.passes(seq_len)

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> Pairs:
        seen = self.sees is Visibility.BIDIRECTIONAL
        return pair_of(
            row, vocab, kind="adjacent", seq_len=seq_len, prefix=seen, aux="none", rate=0.0, rng=rng
        )

    def head(self, d_model: int, vocab_size: int) -> HeadModule:
        return self.of.head(d_model, vocab_size)

    def loss(self, model: Model, batch: Any) -> Loss:
        return self.of.loss(model, batch)

    def floor(self, vocab: Vocab, seq_len: int) -> float:
        n = self.negatives
        return math.log(n + 1) if self.measure == "nats" else n / (n + 1)

    def check_held_out(self, rows: Iterable[Row]) -> None:
        """Refuse held-out rows of which some have too few of other documents. Raises ConfigError with the way out."""
        of_document = Counter(int(row.doc[0]) for row in rows)
        n = of_document.total()
        self._refuse(n - max(of_document.values()), n)

    def held_out(
        self, model: Model, batches: Iterable[Pairs]
    ) -> Iterator[tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]:
        """Embeds all rows, then scores each against its own negatives. Raises ConfigError where it has too few."""
        found = [(embed(model, batch).z.detach(), batch.marks) for batch in batches]
        z, marks = (torch.cat(parts) for parts in zip(*found, strict=True))
        # rows come document by document: in an order of chance the next ones are of many
        order = torch.from_numpy(philox.generator(0, "held-out negatives").permutation(len(z))).to(z.device)
        z, marks, scale = z[order], marks[order], head_of(model).scale()
        for start in range(0, len(z), _BLOCK):
            n = min(_BLOCK, len(z) - start)
            nats = self._ranked(z, marks, start, n, scale)
            yield nats, torch.ones_like(nats)

    def _ranked(
        self,
        z: Float[Tensor, "C 2 D"],
        marks: Int[Tensor, "C 3"],
        start: int,
        n: int,
        scale: Float[Tensor, "1"] | float,
    ) -> Float[Tensor, " B"]:
        """Of ``n`` rows from ``start``; the order closes to a ring, and is looked through as far as needed."""
        total, ahead = len(z), 2 * self.negatives
        while True:
            ahead = min(ahead, total - 1)
            at = torch.arange(start, start + n + ahead, device=z.device) % total
            step = torch.arange(n + ahead, device=z.device) - torch.arange(n, device=z.device)[:, None]
            usable = strangers(marks[at[:n]], marks[at]) & (step > 0) & (step <= ahead)
            least = int(usable.sum(1).min())
            if least >= self.negatives:
                break
            if ahead == total - 1:
                self._refuse(least, total)
            ahead *= 2
        negatives = usable & (usable.cumsum(1) <= self.negatives)
        cosine, own = cosines(z[at[:n], 0], z[at, 1]), torch.arange(n, device=z.device)
        if self.measure == "misses":
            return misses(cosine, own, negatives)
        return info_nce(cosine, own, negatives, scale)

    def _refuse(self, least: int, total: int) -> None:
        if least >= self.negatives:
            return
        lower = f"set it to {least} or less, or " if least else ""
        raise ConfigError(
            f"objective.eval_negatives={self.negatives}, but of {total} held-out rows some have only {least} of other "
            f"documents and other content: {lower}hold out more documents, or set a smaller seq_len"
        )

    @torch.no_grad()
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
        """The first span of each row, and the second spans of these rows that lie nearest to it."""
        rngs = [philox.generator(seed, "samples", 0, i) for i in range(len(rows))]
        examples = [
            self.example(row, vocab, seq_len=seq_len, rng=g) for row, g in zip(rows, rngs, strict=True)
        ]
        device = model.embed.weight.device
        z = torch.cat([embed(model, _alone(one, device)).z for one in examples])
        first, second = (
            [decode(_words(view.text)) for view in views] for views in list(zip(*examples, strict=True))[:2]
        )
        out = []
        for i, near in enumerate(cosines(z[:, 0], z[:, 1]).cpu()):
            nearest = near.argsort(descending=True, stable=True)[:_SHOWN].tolist()
            place = 1 + int((near > near[i]).sum())
            said = [f"{near[j]:.3f} {'(its own) ' if j == i else ''}{second[j]}" for j in nearest]
            out.append(Sample(first[i], "\n\n".join([f"its own is number {place} of {len(near)}", *said])))
        return out


def _words(text: Seq) -> list[int]:
    return [int(i) for i, doc in zip(text.ids, text.doc, strict=True) if doc != NO_DOC and i != BOS]


def _alone(example: Any, device: torch.device) -> Any:
    """A batch of one."""
    if not isinstance(example, tuple):
        return torch.tensor(example, device=device)[None]
    return type(example)(*(_alone(part, device) for part in example))
