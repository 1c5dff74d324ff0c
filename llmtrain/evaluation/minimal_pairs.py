"""Minimal pairs (BLiMP, Warstadt et al. 2020): does a model hold the good sentence of two for the likelier one?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items, Kind, Measured
from llmtrain.evaluation.cloze import TIE
from llmtrain.evaluation.json_lines import json_lines
from llmtrain.evaluation.likelihood import Ask, Likelihood
from llmtrain.evaluation.proportions import over_groups, said, wilson
from llmtrain.evaluation.pseudo import NOTE, pseudo_nats
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.evaluation.subject import Subject
from llmtrain.types import BOS

Scores = Callable[[Sequence[tuple[int, ...]]], Float[np.ndarray, " n"]]  # nats of each sentence


class Pair(NamedTuple):
    good: str
    bad: str
    paradigm: str


def read_pairs(path: Path, per_paradigm: int | None = None) -> list[Pair]:
    """JSON lines {good, bad, uid}: at most ``per_paradigm`` of each uid, the first ones.

    Raises DataError for a line that is no pair.
    """
    found, counts = [], dict[str, int]()
    for i, row in enumerate(json_lines(path, {"good": str, "bad": str, "uid": str}), 1):
        if not (row["good"] and row["bad"]):
            raise DataError(f"{path}: pair {i} has an empty sentence, which has no likelihood: take it out")
        n = counts[row["uid"]] = counts.get(row["uid"], 0) + 1
        if per_paradigm is None or n <= per_paradigm:
            found.append(Pair(row["good"], row["bad"], row["uid"]))
    return found


def by_likelihood(likelihood: Likelihood) -> Scores:
    """Nats of a sentence after BOS; its end is not scored."""

    def nats(sentences: Sequence[tuple[int, ...]]) -> Float[np.ndarray, " n"]:
        answers = likelihood.answer([Ask((BOS,), ids) for ids in sentences])
        return np.array([answer.nats.sum() for answer in answers])

    return nats


def by_pseudo_likelihood(subject: Subject) -> Scores:
    def nats(sentences: Sequence[tuple[int, ...]]) -> Float[np.ndarray, " n"]:
        found = pseudo_nats(subject, [((BOS,), np.array(ids)) for ids in sentences])
        return np.array([one.sum() for one in found])

    return nats


def minimal_pairs(
    scores: Scores,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    *,
    kind: Kind = "generation",
    note: str = "",
) -> list[Measured]:
    """The share of pairs whose good sentence is the likelier one, a tie counting one half.

    Over all, with an interval over paradigms; over those of equal length in tokens, where a model that only counts
    them is at chance; and of each paradigm, with an interval over its pairs.
    """
    sentences = [tuple(ids.tolist()) for ids in tokenizer.encode_batch([t for p in pairs for t in p[:2]])]
    good, bad = sentences[::2], sentences[1::2]
    difference = scores(good) - scores(bad)
    won = np.where(np.abs(difference) <= TIE, 0.5, difference < 0)
    paradigm = np.array([pair.paradigm for pair in pairs])
    equal = np.array([len(g) == len(b) for g, b in zip(good, bad, strict=True)])
    name = "minimal_pairs" if kind == "generation" else "minimal_pairs_pseudo"
    found = [_over_paradigms(name, won, paradigm, np.ones_like(equal), kind, note)]
    if equal.any():
        found.append(_over_paradigms(f"{name}_equal_length", won, paradigm, equal, kind, note))
    for one in dict.fromkeys(paradigm.tolist()):
        of = paradigm == one
        value = float(won[of].mean())
        interval = wilson(value, int(of.sum()))
        found.append(_measured(f"{name}/{one}", won, paradigm, of, kind, note, interval, summary=False))
    return found


def pseudo_minimal_pairs(subject: Subject, pairs: Sequence[Pair]) -> list[Measured]:
    scores = by_pseudo_likelihood(subject)
    return minimal_pairs(scores, subject.tokenizer, pairs, kind="pseudo_likelihood", note=NOTE)


def _over_paradigms(
    yardstick: str, won: np.ndarray, paradigm: np.ndarray, of: np.ndarray, kind: Kind, note: str
) -> Measured:
    means = [float(won[of & (paradigm == one)].mean()) for one in np.unique(paradigm[of])]
    return _measured(yardstick, won, paradigm, of, kind, note, over_groups(means))


def _measured(
    yardstick: str,
    won: np.ndarray,
    paradigm: np.ndarray,
    of: np.ndarray,
    kind: Kind,
    note: str,
    interval: tuple[float, float] | None,
    *,
    summary: bool = True,
) -> Measured:
    """Of the pairs ``of``: the mean over paradigms of their shares, all alike however many pairs they have."""
    chosen = np.flatnonzero(of)
    _, number, counts = np.unique(paradigm[chosen], return_inverse=True, return_counts=True)
    items = Items(
        tuple(str(i) for i in chosen), tuple(paradigm[chosen].tolist()), won[chosen], 1 / counts[number]
    )
    return Measured(
        yardstick=yardstick,
        kind=kind,
        split="test",
        metric="accuracy",
        value=float(np.average(items.value, weights=items.weight)),
        better="higher",
        n=len(chosen),
        items=items,
        item_se=standard_error(items),
        interval=interval,
        chance=0.5,
        ceiling=1.0,
        summary=summary,
        common=kind == "generation",
        note="; ".join(filter(None, (said(interval, 0.5), note))),
    )
