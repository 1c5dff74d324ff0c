"""How likely a text is after another, by the chain rule, whatever a model was trained on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain.errors import ConfigError
from llmtrain.evaluation.lines import Line, Said, read
from llmtrain.evaluation.shared import read_shared
from llmtrain.evaluation.subject import Subject
from llmtrain.objectives.base import Beginning
from llmtrain.types import MASK

_SHARED = 4  # continuations of one context for which it is read once


class Ask(NamedTuple):
    """How likely is ``continuation`` after ``context``? Both are ids, and neither is empty."""

    context: tuple[int, ...]  # begins with BOS where the document does
    continuation: tuple[int, ...]


class Answer(NamedTuple):
    nats: Float[np.ndarray, " n"]  # of each token of the continuation, given all before it
    greedy: bool  # whether each of them was the likeliest
    cut: int = 0  # tokens of the context, from its beginning, that had no room


class Likelihood(ABC):
    ends: bool = True  # whether BOS may be asked for, as the end of a document
    note: str = ""  # what a reader of its numbers must know

    @abstractmethod
    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """In the order of ``asks``; those of one context are given as much of it as the longest leaves room for.

        Raises ConfigError for a continuation that is longer than the model reads.
        """


def likelihood_of(subject: Subject) -> Likelihood:
    """Raises ConfigError where the objective has learnt none."""
    if subject.objective.beginning((0,)) is not None:
        return WritesOn(subject)
    if subject.objective.fills:
        return FillsIn(subject)
    raise ConfigError(
        f"a model trained with {type(subject.objective).__name__} gives no likelihood of a text, since it has not "
        "learnt to predict tokens: measure its features, or choose a run of another objective"
    )


class WritesOn(Likelihood):
    """A model that goes on from a text, exactly: ``Objective.beginning`` says how it is asked to."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def begin(self, context: Sequence[int], n_tokens: int) -> tuple[Beginning, int]:
        """How ``n_tokens`` more are asked for, and how many tokens of the context were cut off to make room."""
        objective, seq_len = self._subject.objective, self._subject.seq_len
        cut = 0
        while True:  # twice, if the context loses its BOS and a mode comes in its place
            begun = objective.beginning(context[cut:])
            assert begun is not None
            over = max(len(begun.prompt) + n_tokens - 1, len(begun.source or ())) - seq_len
            if over <= 0:
                return begun, cut
            cut += over
            if cut >= len(context):
                raise _too_long(n_tokens, seq_len)

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        model = self._subject.model
        lines: dict[int, Line] = {}
        cuts, said = dict[int, int](), dict[int, Said]()
        for context, numbers in by_context(asks).items():
            continuations = [asks[i].continuation for i in numbers]
            begun, cut = self.begin(context, max(map(len, continuations)))
            cuts |= dict.fromkeys(numbers, cut)
            if len(numbers) < _SHARED:
                lines |= {i: _going_on(begun, asks[i].continuation) for i in numbers}
            else:
                said |= dict(zip(numbers, read_shared(model, begun, continuations), strict=True))
        said |= dict(zip(lines, read(model, list(lines.values())), strict=True))
        return [Answer(said[i].nats, bool(said[i].likeliest.all()), cuts[i]) for i in range(len(asks))]


def by_context(asks: Sequence[Ask]) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the asks that share each context."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, ask in enumerate(asks):
        found.setdefault(ask.context, []).append(i)
    return found


def _going_on(begun: Beginning, continuation: tuple[int, ...]) -> Line:
    ids = (*begun.prompt, *continuation[:-1])
    at = tuple(range(len(begun.prompt) - 1, len(ids)))
    return Line(ids, at, continuation, begun.prefix, None if begun.source is None else tuple(begun.source))


class FillsIn(Likelihood):
    """A masked model from left to right: each token with all that follow it masked.

    The product is a probability over continuations of so many tokens, since every factor is given those before: a
    proper bound, but of masks as the model was never trained on.
    """

    ends = False
    note = (
        "from left to right with the rest masked: a proper bound, out of distribution; how many tokens follow is "
        "known, so the end of a document is not scored"
    )

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        seq_len = self._subject.seq_len
        cuts: dict[int, int] = {}
        for context, numbers in by_context(asks).items():
            longest = max(len(asks[i].continuation) for i in numbers)
            cut = max(0, len(context) + longest - seq_len)
            if cut >= len(context):
                raise _too_long(longest, seq_len)
            cuts |= dict.fromkeys(numbers, cut)
        lines = [
            line
            for i, ask in enumerate(asks)
            for line in _filling_in(ask.context[cuts[i] :], ask.continuation)
        ]
        said = iter(read(self._subject.model, lines))
        answers = []
        for i, ask in enumerate(asks):
            own = [next(said) for _ in ask.continuation]
            nats = np.concatenate([one.nats for one in own])
            answers.append(Answer(nats, all(bool(one.likeliest.all()) for one in own), cuts[i]))
        return answers


def _filling_in(context: tuple[int, ...], continuation: tuple[int, ...]) -> list[Line]:
    """A line for each token: those whose continuations are as long, and alike so far, are the same row."""
    n = len(continuation)
    whole = len(context) + n
    return [
        Line(
            (*context, *continuation[:i], *(MASK,) * (n - i)),
            at=(len(context) + i,),
            targets=(token,),
            prefix=whole,
        )
        for i, token in enumerate(continuation)
    ]


def _too_long(n_tokens: int, seq_len: int) -> ConfigError:
    return ConfigError(
        f"{n_tokens} tokens are asked for at once, and with something before them they do not fit into "
        f"seq_len={seq_len}: ask for shorter texts (window_bytes, context_bytes or stride)"
    )
