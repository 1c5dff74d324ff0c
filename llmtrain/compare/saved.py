"""``comparison.json`` and ``items.parquet``: a comparison as data, the numbers, what they are of, and what they show.

The long table is ``rows``: ``pandas.DataFrame(json.load(file)["rows"])``; items load with ``pandas.read_parquet``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from llmtrain.compare.results import Growth, Result
from llmtrain.compare.results import Role as Role  # whoever makes a row needs it
from llmtrain.config import config
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items, Kind, Measured

NAME, ITEMS = "comparison.json", "items.parquet"
_AGREE = 1e-6  # a value and the mean of its items


@config
class SeriesAbout:
    """A series, as the table shows it: the same architecture and objective in all of its cells."""

    name: str
    objective: str
    architecture: str
    words: tuple[str, ...] = ()  # of train.py


@config
class CellAbout:
    """One trained model, and what it took."""

    run: str
    series: str
    seed: int
    budget: int
    flops_model: int  # what it came to
    flops_per_token: float  # of a raw token
    n_total: int
    n_active: int
    raw_tokens: int
    epochs: float
    steps: int
    batch_rows: int
    lr: float
    train_seconds: float
    status: Literal["finished", "diverged", "failed"] = "finished"
    loss: str = ""  # its own held-out score in words: of different objectives no two are comparable


@config
class TuningAbout:
    """The learning rates that were tried for a series at a budget: the same number for every one."""

    series: str
    budget: int
    losses: dict[str, float | None]  # by rate; none where it diverged
    best: float
    inside: bool  # whether the best lies between others
    seconds: float | None = None  # of all trials


@config
class Overlap:
    """Items of a yardstick that share 50 characters with what was trained on, and were dropped."""

    items: int  # before
    dropped: int


@config
class About:
    """What a comparison must state of itself."""

    name: str
    matched: Literal["flops", "tokens", "time"]  # what all cells of one budget have equal
    size: Literal["flops_per_token", "optimum"]  # how the sizes of series were matched
    tolerance: float = 0.01  # relative, of what is matched
    budgets: tuple[int, ...]  # model FLOPs of a cell of the baseline, to which the others are matched
    baseline: str  # the series that all others are held against
    series: tuple[SeriesAbout, ...]
    seeds: tuple[int, ...]
    cells: tuple[CellAbout, ...]
    tuning: tuple[TuningAbout, ...] = ()
    seq_len: int
    vocab_size: int
    precision: str
    corpus: str  # in words
    corpus_fingerprint: str  # of what was trained on
    tokenizer_hash: str
    held_out_files: int
    held_out_by: Literal["file", "document"] = "file"  # what held_out_files counts
    held_out_documents: dict[str, int]  # by split
    overlap: dict[str, Overlap] = field(default_factory=dict)  # by yardstick
    device: str
    git: str | None
    versions: dict[str, str]
    command: str = ""


@config
class Whose:
    """Which model a number is of.

    An untrained model bears the name of the series that it would become, a baseline its own ("tfidf", "unigram").
    """

    series: str
    role: Role
    seed: int | None = None  # none of a baseline that has no seed
    budget: int | None = None  # none of what was not trained


@config
class Row:
    """A line of the long table: one number of one model (``evaluation.base.Measured``)."""

    series: str
    role: Role
    seed: int | None
    budget: int | None
    yardstick: str
    kind: Kind
    split: Literal["dev", "test"]
    metric: str
    value: float
    better: Literal["higher", "lower"]
    n: int
    item_se: float | None = None
    groups: int | None = None
    interval: tuple[float, float] | None = None
    chance: float | None = None
    ceiling: float | None = None
    summary: bool = True
    common: bool = True
    choices: dict[str, str | int | float] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> "Key":
        return Key(self.series, self.role, self.seed, self.budget, self.yardstick, self.metric, self.split)


@config
class Alike:
    """How alike two trained models of one budget are in what they make of the same texts: linear CKA, debiased."""

    first: str  # a series
    second: str  # another, or the same with another seed
    first_seed: int
    second_seed: int
    budget: int
    value: float  # 1: the same but for a rotation


class Key(NamedTuple):
    """Names one row, and its items."""

    series: str
    role: str
    seed: int | None
    budget: int | None
    yardstick: str
    metric: str
    split: str


@config
class Comparison:
    version: Literal[1] = 1
    about: About
    rows: tuple[Row, ...]
    alike: tuple[Alike, ...] = ()
    results: tuple[Result, ...] = ()  # none before ``judge``
    growth: tuple[Growth, ...] = ()  # none under 6 budgets


def row_of(whose: Whose, measured: Measured) -> Row:
    given = measured._asdict()
    del given["items"]
    return Row(**vars(whose), **given)


def gathered(
    measured: Iterable[tuple[Whose, Measured]],
) -> tuple[tuple[Row, ...], dict[Key, Items]]:
    """The long table, and the items of those rows that have some.

    Raises DataError where one number was given twice, or is not the mean of its items.
    """
    rows: dict[Key, Row] = {}
    items: dict[Key, Items] = {}
    for whose, one in measured:
        row = row_of(whose, one)
        name = f"{row.yardstick}/{row.metric} of {row.series}, seed {row.seed}"
        if row.key in rows:
            raise DataError(f"{name}, was given twice")
        rows[row.key] = row
        if one.items is not None:
            mean = float(np.average(one.items.value, weights=one.items.weight))
            if not np.isclose(mean, row.value, rtol=_AGREE, atol=_AGREE):
                raise DataError(f"{name}, is {row.value:.6g}, and the mean of its items is {mean:.6g}")
            items[row.key] = one.items
    return tuple(rows.values()), items


def write_comparison(folder: Path, comparison: Comparison, items: Mapping[Key, Items]) -> None:
    """Both files, each whole or not at all; the same comparison writes the same bytes."""
    from pydantic import TypeAdapter

    folder.mkdir(parents=True, exist_ok=True)
    _write_items(folder / ITEMS, items)
    text = TypeAdapter(Comparison).dump_json(comparison, indent=1) + b"\n"
    replaced(folder / NAME, lambda path: path.write_bytes(text))


def read_comparison(folder: Path) -> tuple[Comparison, dict[Key, Items]]:
    """Raises DataError where there is none, or one that this does not read."""
    from pydantic import TypeAdapter, ValidationError

    path = folder / NAME
    try:
        comparison = TypeAdapter(Comparison).validate_json(path.read_bytes())
    except OSError:
        raise DataError(f"{path}: there is no comparison; make one with scripts/compare.py") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path} is no comparison as this version writes it: {where}: {first['msg']}"
        ) from None
    return comparison, _read_items(folder / ITEMS)


def _write_items(path: Path, items: Mapping[Key, Items]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    length = [len(one.value) for one in items.values()]
    keys = {
        name: np.repeat(np.array([getattr(key, name) for key in items], dtype=object), length)
        for name in Key._fields
    }
    types = {name: pa.int64() if name in ("seed", "budget") else pa.string() for name in Key._fields}
    columns: dict[str, Any] = {name: pa.array(keys[name], types[name]) for name in Key._fields}
    columns["id"] = pa.array([text for one in items.values() for text in one.id], pa.string())
    columns["group"] = pa.array([text for one in items.values() for text in one.group], pa.string())
    columns["value"] = pa.array(np.concatenate([[], *(one.value for one in items.values())]), pa.float64())
    weights = [[None] * len(one.value) if one.weight is None else one.weight for one in items.values()]
    columns["weight"] = pa.array([w for many in weights for w in many], pa.float64())
    table = pa.table(columns)
    replaced(path, lambda partial: parquet.write_table(table, partial, compression="zstd"))


def _read_items(path: Path) -> dict[Key, Items]:
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except OSError as error:
        raise DataError(f"{path}: the items cannot be read: {error}") from None
    columns = {name: table.column(name).to_pylist() for name in (*Key._fields, "id", "group")}
    value, weight = (table.column(name).to_numpy() for name in ("value", "weight"))  # null comes as nan
    found: dict[Key, Items] = {}
    keys = [Key(*row) for row in zip(*(columns[name] for name in Key._fields), strict=True)]
    begin = 0
    while begin < len(keys):
        end = begin
        while end < len(keys) and keys[end] == keys[begin]:
            end += 1
        found[keys[begin]] = Items(
            tuple(columns["id"][begin:end]),
            tuple(columns["group"][begin:end]),
            value[begin:end],
            None if np.isnan(weight[begin]) else weight[begin:end],
        )
        begin = end
    return found


def replaced_text(path: Path, text: str) -> None:
    replaced(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """``path`` as ``write`` makes it: whole or not at all."""
    partial = path.with_name(f"{path.name}.tmp")
    write(partial)
    partial.replace(path)
