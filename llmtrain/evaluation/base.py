"""What every yardstick takes and gives: texts that were never trained on, and a value with its items."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Kind = Literal["features", "fine_tuning", "generation", "pseudo_likelihood", "geometry"]


class Document(NamedTuple):
    """A text that no cell was trained on."""

    file: str  # what it came from: splits and resampling never part a file
    text: str


class HeldOutTexts(NamedTuple):
    """Held-out documents, whose files are dealt to three splits: a probe's train and test share no file."""

    train: tuple[Document, ...]
    dev: tuple[Document, ...]
    test: tuple[Document, ...]


class Items(NamedTuple):
    """The parts that a value is the mean of, in an order that is the same for every model."""

    id: tuple[str, ...]
    group: tuple[str, ...]  # what is resampled as one: the document, or the paradigm of a minimal pair
    value: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"] | None = None  # of a ratio of sums; none: the plain mean


class Measured(NamedTuple):
    """One number of one model on one yardstick."""

    yardstick: str  # "suffix_bits_per_byte", "probe_name_role", ...
    kind: Kind
    split: Literal["dev", "test"]
    metric: str  # "accuracy", "macro_f1", "spearman", "recall@1", "bits per byte", ...
    value: float
    better: Literal["higher", "lower"]
    n: int  # items
    items: Items | None = None  # none where a value is of the whole set, as a rank correlation
    item_se: float | None = None  # of the value over resampled groups
    groups: int | None = None  # how many those are, where items do not say it
    interval: tuple[float, float] | None = None  # at 95%, where it is not made of item_se, as of a proportion
    chance: float | None = None  # the value of a model that knows nothing
    ceiling: float | None = None  # the best there is
    summary: bool = True  # not where it is close to one series' own objective
    common: bool = True  # whether it means the same for every series
    choices: dict[str, str | int | float] = {}  # what was chosen on dev: layer, pooling, regularisation  # noqa: RUF012
    note: str = ""  # what a reader must know: "a bound, out of distribution", ...
