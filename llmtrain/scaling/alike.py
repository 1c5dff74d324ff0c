"""What runs share before their scores are set side by side, in a fit and in a comparison alike."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from llmtrain.record import RunRecord


class Shared(NamedTuple):
    one: str
    many: str
    of: Callable[[RunRecord], object]


# by the field of a fit's ``About``
SHARED: dict[str, Shared] = {
    "corpus": Shared("corpus", "corpora", lambda record: record.corpus_fingerprint),
    "tokenizer": Shared("tokenizer", "tokenizers", lambda record: record.tokenizer_hash),
    "python": Shared(
        "version of Python", "versions of Python", lambda record: record.versions.get("python", "")
    ),
}


class Unlike(NamedTuple):
    """Two runs that differ where they must not, the first of all against the first unlike it."""

    many: str  # what they differ in
    first: str
    value: object
    other: str
    its: object
    n_unlike: int  # the first


def unlike(values: Mapping[str, object], many: str) -> Unlike | None:
    """``values``: of each run by name; none where all are equal, or there are no runs."""
    (first, value), *others = values.items() if values else [("", None)]
    differing = [name for name, its in others if its != value]
    if not differing:
        return None
    return Unlike(many, first, value, differing[0], values[differing[0]], len(differing))


def first_unlike(records: Mapping[str, RunRecord], shared: Iterable[Shared]) -> Unlike | None:
    """The first of what is ``shared`` in which runs, by name, differ."""
    found = (unlike({name: one.of(record) for name, record in records.items()}, one.many) for one in shared)
    return next((one for one in found if one is not None), None)
