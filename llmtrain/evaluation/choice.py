"""Multiple choice: which of several answers to a question is the likeliest?"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items, Measured
from llmtrain.evaluation.cloze import best
from llmtrain.evaluation.json_lines import json_lines
from llmtrain.evaluation.likelihood import Ask, Likelihood
from llmtrain.evaluation.proportions import said, wilson
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.types import BOS


class Question(NamedTuple):
    text: str
    choices: tuple[str, ...]
    label: int

    @property
    def whole(self) -> str:
        """The question with its answer."""
        return f"{self.text}{_between(self.text)}{self.choices[self.label]}"


def read_questions(path: Path) -> list[Question]:
    """JSON lines {q, choices, label}: label is the place of the right one, from 0."""
    found = []
    for i, row in enumerate(json_lines(path, {"q": str, "choices": list, "label": int}), 1):
        choices, label = row["choices"], row["label"]
        if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
            raise DataError(f"{path}: question {i} must have at least two choices, all of them text")
        if not 0 <= label < len(choices):
            raise DataError(f"{path}: question {i} has label {label}, but {len(choices)} choices from 0 on")
        found.append(Question(row["q"], tuple(choices), label))
    return found


def choice(likelihood: Likelihood, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Measured]:
    """How often the right choice is the likeliest, as it stands and by the byte; ties share.

    A choice follows the question after a space, or at once where the question ends in no ASCII character, as in
    Japanese. Where the question is too long its beginning is cut off.
    """
    parts = [(q.text, f"{_between(q.text)}{c}") for q in questions for c in q.choices]
    asked = tokenizer.encode_batch([text for text, _ in parts])
    given = tokenizer.encode_batch([answer for _, answer in parts])
    asks = [
        Ask((BOS, *before.tolist()), tuple(after.tolist()))
        for before, after in zip(asked, given, strict=True)
    ]
    nats = np.array([answer.nats.sum() for answer in likelihood.answer(asks)])
    n_bytes = np.array([len(answer.encode()) for _, answer in parts])
    return [
        _measured("accuracy", questions, nats, likelihood.note),
        _measured("accuracy by the byte", questions, nats / n_bytes, likelihood.note),
    ]


def _between(question: str) -> str:
    return " " if question[-1:].isascii() else ""


def _measured(metric: str, questions: Sequence[Question], scores: np.ndarray, note: str) -> Measured:
    of = np.split(scores, np.cumsum([len(q.choices) for q in questions])[:-1])
    right = [best(np.roll(own, -q.label)) for q, own in zip(questions, of, strict=True)]
    names = tuple(str(i) for i in range(len(questions)))
    items = Items(names, names, np.array(right, np.float64))
    value = float(items.value.mean())
    chance = float(np.mean([1 / len(q.choices) for q in questions]))
    interval = wilson(value, len(questions))
    return Measured(
        yardstick="choice",
        kind="generation",
        split="test",
        metric=metric,
        value=value,
        better="higher",
        n=len(questions),
        items=items,
        item_se=standard_error(items),
        interval=interval,
        chance=chance,
        ceiling=1.0,
        note="; ".join(filter(None, (said(interval, chance), note))),
    )
