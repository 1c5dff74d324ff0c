"""Runs from a CSV file whose columns the user names."""

import csv
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmtrain.config import config
from llmtrain.errors import ConfigError, DataError
from llmtrain.scaling.flops import SIX_ND, Convention, measured
from llmtrain.scaling.points import About, Points, sha256_of, without_copies
from llmtrain.typos import did_you_mean, nearest

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"(?P<column>.+?)\s*(?P<how><=|>=|!=|<|>|=)\s*(?P<value>.*)")
_DERIVED = re.compile(r"1(?P<how>[-/])(?P<column>.+?)(?P<square>\^2)?")


@config
class Columns:
    """Which column is what. One may be given as ``1-NAME``, ``1/NAME`` or ``1/NAME^2`` of another."""

    n: str | None = None  # parameters
    c: str | None = None  # FLOPs
    d: str | None = None  # tokens, or pairs
    loss: str | None = None
    run: str | None = None  # what is independent: rows of one run are resampled together
    weight: str | None = None
    experts: str | None = None
    unique: str | None = None  # tokens seen at least once
    series: str | None = None  # rows that differ here make fits of their own
    where: tuple[str, ...] = ()  # NAME=VALUE, NAME!=VALUE, NAME<NUMBER, ...: the rows that are read


class _Row(NamedTuple):
    line: int
    cells: dict[str, str]


def read_csv(path: Path, columns: Columns) -> list[Points]:
    """The points of each series.

    Raises ConfigError for a name that is no column, DataError for a cell that is no number above 0.
    """
    if columns.loss is None:
        raise ConfigError(f"{path}: name the column of the loss with --loss")
    header, rows = _table(path)
    for named in columns.where:
        rows = list(_matching(path, header, rows, named))
    if not rows:
        raise DataError(f"{path}: no row is left{' of ' + ', '.join(columns.where) if columns.where else ''}")
    if columns.series is None:
        return [_points(path, header, rows, columns)]
    _known(path, header, columns.series)
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.cells[columns.series], []).append(row)
    found = [(name, _points(path, header, group, columns)) for name, group in groups.items()]
    return [replace(points, about=replace(points.about, series=name)) for name, points in found]


def _table(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            header = list(reader.fieldnames or [])
            rows = [_Row(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    if not header or not rows:
        raise DataError(f"{path}: a CSV file needs a line of column names and at least one row")
    return header, rows


def _known(path: Path, header: list[str], name: str) -> None:
    if name not in header:
        raise ConfigError(f"{path} has no column {name!r}: {did_you_mean(nearest(name, header), header)}")


def _matching(path: Path, header: list[str], rows: list[_Row], condition: str) -> Iterator[_Row]:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ConfigError(f"where {condition!r}: write NAME=VALUE, NAME!=VALUE, NAME<NUMBER or NAME>NUMBER")
    column, how, value = match["column"], match["how"], match["value"]
    _known(path, header, column)
    if how in _COMPARE:
        bound = _number(value)
        if bound is None:
            raise ConfigError(f"where {condition!r}: {value!r} is no number")
        for row in rows:
            if _COMPARE[how](_cell(path, row, column), bound):
                yield row
        return
    yield from (row for row in rows if (row.cells[column] == value) == (how == "="))


def _points(path: Path, header: list[str], rows: list[_Row], columns: Columns) -> Points:
    def column(name: str) -> np.ndarray:
        return _column(path, header, rows, name)

    given = {key: getattr(columns, key) for key in ("n", "d", "c", "experts", "unique")}
    x = {key: column(name) for key, name in given.items() if name is not None}
    x, convention = with_third(x, columns.c or "")
    if columns.run is None:
        run = np.array([f"line {row.line}" for row in rows])
        unit = np.arange(len(rows))
    else:
        _known(path, header, columns.run)
        run = np.array([row.cells[columns.run] for row in rows])
        unit = np.unique(run, return_inverse=True)[1]
    assert columns.loss is not None
    made = Points(
        x=x,
        loss=column(columns.loss),
        weight=np.ones(len(rows)) if columns.weight is None else column(columns.weight),
        run=run,
        unit=unit,
        unit_name="run",
        convention=convention,
        about=About(
            source=str(path),
            sha256=sha256_of(path),
            score=columns.loss,
            n_convention=f"column {columns.n}" if columns.n else "none",
            table=True,
        ),
    )
    return made if columns.run is None else without_copies(made)  # without names, equal rows may be two seeds


def with_third(x: dict[str, np.ndarray], c_name: str) -> tuple[dict[str, np.ndarray], Convention]:
    """Of n, d and c the one that is missing by C = 6ND; where all are given, how C hangs on N and D there."""
    if "n" in x and "d" in x and "c" in x:
        return x, measured(x["n"], x["d"], x["c"], f"FLOPs as {c_name}")
    if "n" in x and "c" in x:
        x = x | {"d": x["c"] / (6 * x["n"])}
    elif "n" in x and "d" in x:
        x = x | {"c": 6 * x["n"] * x["d"]}
    return x, SIX_ND


def _column(path: Path, header: list[str], rows: list[_Row], name: str) -> np.ndarray:
    if name in header:
        return np.array([_positive(path, row, name) for row in rows])
    derived = _DERIVED.fullmatch(name)
    if derived is None:
        _known(path, header, name)
        raise AssertionError
    base = derived["column"]
    _known(path, header, base)
    if derived["how"] == "-":
        found = np.array([1 - _cell(path, row, base) for row in rows])
        if not (found > 0).all():
            raise DataError(f"{path}: {name} must be above 0, but {base} reaches {1 - found.min():g}")
        return found
    values = np.array([_positive(path, row, base) for row in rows])
    return 1 / (values**2 if derived["square"] else values)


def _positive(path: Path, row: _Row, name: str) -> float:
    value = _cell(path, row, name)
    if value <= 0:
        raise DataError(
            f"{path}, line {row.line}: {name} is {value:g} and must be above 0; leave the row out with --where"
        )
    return value


def _cell(path: Path, row: _Row, name: str) -> float:
    value = _number(row.cells[name])
    if value is None:
        raise DataError(
            f"{path}, line {row.line}: {name} is {row.cells[name]!r}, no finite number; leave it out with --where"
        )
    return value


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None
