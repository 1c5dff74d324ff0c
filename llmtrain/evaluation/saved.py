"""The schema of ``evaluation.json``, what was measured of one run, with the items of each number beside it."""

from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from llmtrain.config import config
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Kind, Measured

NAME, ITEMS = "evaluation.json", "evaluation.parquet"


@config
class Row:
    """One number, of the run or of a baseline (``evaluation.base.Measured``)."""

    of: str  # "run", or the name of a baseline
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


@config
class Evaluated:
    version: Literal[1] = 1
    run: str
    checkpoint: str  # the folder of its weights
    objective: str
    seq_len: int
    tokenizer_hash: str
    asked: dict[str, Any]  # the settings, as plain data
    rows: tuple[Row, ...]


Numbers = Iterable[tuple[str, Measured]]  # of whom, and what


def rows_of(numbers: Numbers) -> tuple[Row, ...]:
    return tuple(
        Row(of=of, **{name: value for name, value in one._asdict().items() if name != "items"})
        for of, one in numbers
    )


def write_evaluation(folder: Path, evaluated: Evaluated, numbers: Numbers) -> None:
    """Both files, each whole or not at all; the same numbers write the same bytes."""
    import pyarrow as pa
    from pyarrow import parquet
    from pydantic import TypeAdapter

    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "of": of,
            "yardstick": one.yardstick,
            "metric": one.metric,
            "id": one.items.id[i],
            "group": one.items.group[i],
            "value": float(one.items.value[i]),
            "weight": None if one.items.weight is None else float(one.items.weight[i]),
        }
        for of, one in numbers
        if one.items is not None
        for i in range(len(one.items.id))
    ]
    texts = [(name, pa.string()) for name in ("of", "yardstick", "metric", "id", "group")]
    schema = pa.schema([*texts, ("value", pa.float64()), ("weight", pa.float64())])
    table = pa.Table.from_pylist(lines, schema=schema)
    partial = folder / f"{ITEMS}.tmp"
    parquet.write_table(table, partial, compression="zstd")
    partial.replace(folder / ITEMS)
    partial = folder / f"{NAME}.tmp"
    partial.write_bytes(TypeAdapter(Evaluated).dump_json(evaluated, indent=1) + b"\n")
    partial.replace(folder / NAME)


def read_evaluation(path: Path) -> Evaluated:
    """Raises DataError where there is none, or one that this does not read."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Evaluated).validate_json(path.read_bytes())
    except OSError:
        raise DataError(f"{path}: there is no evaluation; make one with scripts/evaluate.py") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path} is no evaluation as this version writes it: {where}: {first['msg']}"
        ) from None
