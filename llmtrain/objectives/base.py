"""What an objective is: the one object that knows both ends of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.config import config
from llmtrain.nn.base import HeadModule
from llmtrain.nn.model import Model, ModelConfig
from llmtrain.nn.routing import routers, routing_loss
from llmtrain.types import N_FIXED, Routing, Row, Seq, Visibility, Vocab


class Loss(NamedTuple):
    """What a batch of B rows cost; sums and counts are kept apart, so that means over any split of rows are exact."""

    loss: Float[Tensor, ""]  # optimised: nats / (rows x scored(seq_len)); carries the gradient
    nats: Float[Tensor, " B"]  # sum over the scored positions of each row
    counts: Float[Tensor, " B"]  # scored positions of each row
    routing: tuple[Routing, ...]  # what the routers of the layers counted; () when dense


class Pass(NamedTuple):
    """One row's way through one stack of the model: what accounting counts."""

    stack: Literal["trunk", "encoder"]
    tokens: int
    prefix: int = 0  # of them in the prefix, where the stack's visibility is PREFIX
    source: int = 0  # tokens of the stream that its cross-attention reads
    scored: int = 0  # positions that its head is run on
    share: float = 1.0  # of the rows that go this way: 1/K for one pattern of K


class Beginning(NamedTuple):
    """How a model is asked to go on: its decoder has read ``prompt``, and the first token follows the last of that."""

    prompt: list[int]
    prefix: int = 0  # tokens that all of the prompt sees
    source: list[int] | None = None  # what an encoder reads


@config
class Objective(ABC):
    """Turns raw rows into examples, and a model's output on a batch of them into a loss."""

    @property
    def rows(self) -> Literal["packed", "document"]:
        """What a row of raw tokens is: documents end to end, or (a part of) one document."""
        return "packed"

    @property
    def encoder(self) -> bool:
        """Whether a second, bidirectional trunk reads a source stream."""
        return False

    @property
    def overlap(self) -> int:
        """Raw tokens that a row shares with the next one."""
        return 0

    @property
    def accumulates(self) -> bool:
        """Whether the loss of a batch is the mean of those of its parts; else gradient accumulation is refused."""
        return True

    @property
    @abstractmethod
    def score_name(self) -> str:
        """What the held-out score is called; scores of different names are never compared."""

    @property
    @abstractmethod
    def score_unit(self) -> str: ...

    @property
    def likelihood(self) -> bool:
        """Whether nats are those of all tokens, so that bits per byte exist."""
        return False

    @property
    def continues(self) -> bool:
        """Whether the model has learnt to go on from a text."""
        return False

    @property
    def fills(self) -> bool:
        """Whether the model has learnt to say what stands behind a MASK in a text that is seen whole."""
        return False

    @property
    def together(self) -> bool:
        """Whether held-out rows are scored against one another, so that each rank needs all of them."""
        return False

    @property
    @abstractmethod
    def sees(self) -> Visibility:
        """What the trunk is built for."""

    @abstractmethod
    def raw_len(self, seq_len: int) -> int:
        """How many raw tokens make one example of ``seq_len``."""

    @abstractmethod
    def scored(self, seq_len: int) -> float:
        """How many positions a row scores, in a mixture on average: a constant, so that a mean of means is the mean."""

    @abstractmethod
    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        """Everything a row costs beyond its embedding."""

    @abstractmethod
    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> Any:
        """One example, a NamedTuple of numpy arrays (nested at will), which is a pure function of its arguments."""

    @abstractmethod
    def head(self, d_model: int, vocab_size: int) -> HeadModule: ...

    @abstractmethod
    def loss(self, model: Model, batch: Any) -> Loss:
        """The loss of a batch: examples stacked along a first axis, as tensors on the model's device."""

    @abstractmethod
    def floor(self, vocab: Vocab, seq_len: int) -> float:
        """The least held-out score on i.i.d. uniform tokens, in closed form: whoever beats it has seen the answer."""

    @abstractmethod
    def samples(
        self,
        model: Model,
        rows: Sequence[Row],
        vocab: Vocab,
        decode: Callable[[Sequence[int]], str],
        *,
        seq_len: int,
        seed: int,
    ) -> list["Sample"]:
        """What the model makes of held-out rows, to be read by a person."""

    def beginning(self, context: Sequence[int]) -> Beginning | None:
        """How it is asked for what follows ``context``, as nearly as can be to how it was trained.

        ``context`` is not empty, and begins with BOS where its document does. None where the model has learnt nothing
        of the kind.
        """
        return None

    def evaluations(self) -> tuple["Objective", ...]:
        """What is scored on held-out rows: the first makes the run's score. Each has a ``score_name`` of its own."""
        return (self,)

    def held_out(
        self, model: Model, batches: Iterable[Any]
    ) -> Iterator[tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]:
        """The nats and the counts of the rows of each held-out batch."""
        for batch in batches:
            _, nats, counts, _ = self.loss(model, batch)
            yield nats, counts

    def build(self, cfg: ModelConfig, vocab_size: int) -> Model:
        """The model that this objective trains, not yet initialised."""
        _, d_model = cfg.shape
        head = self.head(d_model, vocab_size)
        return Model(cfg, self.sees, vocab_size=vocab_size, head=head, encoder=self.encoder)

    def check(self, cfg: ModelConfig, *, seq_len: int, one_document: bool) -> None:
        """Refuse layers that cannot see what this objective needs seen, and say why.

        ``one_document`` says whether each row holds one document. Raises ValueError naming the layer, the reason and
        the way out.
        """
        stacks = {"trunk": self.sees} | ({"encoder": Visibility.BIDIRECTIONAL} if self.encoder else {})
        for stack, needed in stacks.items():
            for i, layer in enumerate(cfg.layers):
                for part in layer.parts():
                    if needed not in part.supports:
                        can = " or ".join(sorted(v.value for v in part.supports))
                        raise ValueError(
                            f"{type(self).__name__} needs a {needed.value} {stack}, but model.layers.{i} has "
                            f"{type(part).__name__}, which can only be {can}: choose another layer or another objective"
                        )
                    if part.one_document and not one_document:
                        raise ValueError(
                            f"model.layers.{i} has {type(part).__name__}, which cannot keep the documents of a packed "
                            "row apart: set data.isolate_documents=false, or choose another layer"
                        )

    def check_held_out(self, rows: Iterable[Row]) -> None:  # noqa: B027 - most objectives take any
        """Refuse held-out rows that cannot be scored. Raises ConfigError with the way out."""

    def check_sentinels(self, n_sentinels: int, seq_len: int) -> None:  # noqa: B027 - most objectives need none
        """Refuse a tokenizer with fewer sentinels than examples take. Raises ValueError with the way out."""

    def check_vocab(self, vocab: Vocab, seq_len: int) -> None:
        """Refuse a vocabulary that lacks what examples are made with. Raises ValueError with the way out."""
        self.check_sentinels(vocab.n_reserved - N_FIXED, seq_len)


class Sample(NamedTuple):
    given: str
    made: str


class Task(nn.Module):
    """A model with its objective: the one module that is trained, wrapped and compiled.

    In training, the losses of the routers join the objective's; nats and counts stay the objective's own.
    """

    def __init__(self, model: Model, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> Loss:
        out = self.objective.loss(self.model, batch)
        if not (self.training and out.routing):
            return out
        loss = out.loss + routing_loss(routers(self.model), out.routing)
        return Loss(loss, out.nats, out.counts, out.routing)


def seq_of(ids: np.ndarray, doc: np.ndarray, prefix: np.ndarray | bool) -> Seq:
    """A stream of one row, positions counted from the first token of each document in it (arrays, not yet tensors).

    A prefix must be an initial segment of its document, which kernels rely on.
    """
    i = np.arange(len(ids))
    starts = np.zeros(len(ids), bool)
    starts[0], starts[1:] = True, doc[1:] != doc[:-1]
    pos = i - np.maximum.accumulate(np.where(starts, i, 0))
    seen = np.broadcast_to(np.asarray(prefix, bool), ids.shape)
    assert not (seen[1:] & ~seen[:-1] & ~starts[1:]).any(), "a prefix begins inside a document"
    return Seq(ids, doc, pos, seen)  # type: ignore[arg-type]
