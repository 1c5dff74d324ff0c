"""Labelled sets that a user names: files of JSON lines or CSV, or data sets of the ``datasets`` library."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmtrain import philox
from llmtrain.data.sources.files import COMPRESSED, lines
from llmtrain.errors import ConfigError, DataError
from llmtrain.evaluation.feature_settings import Graded, Labelled
from llmtrain.evaluation.tasks import Classification, Example, Input, Pair, Similarity, at_most

_TABLES = {".csv": ",", ".tsv": "\t"}
_LONGEST = 2**30  # bytes of a field: a document may be longer than csv's own 131,072
_JSON = (".jsonl", ".json")
_SHARES = {"dev": 0.15, "test": 0.25}  # of a set that names no such split


def classification(cfg: Labelled) -> Classification:
    """Test rows that stand in the training or dev part too are left out, and counted in the note."""
    given = {name: list(_examples(cfg, name)) for name in ("train", "dev", "test") if getattr(cfg, name)}
    splits = _dealt(given)
    seen = {e.input.text for name in ("train", "dev") for e in splits[name]}
    test = [e for e in splits["test"] if e.input.text not in seen]
    return Classification(
        cfg.name,
        train=at_most(splits["train"], cfg.train_items),
        dev=at_most(splits["dev"], cfg.test_items),
        test=at_most(test, cfg.test_items),
        note=_repeated(len(splits["test"]) - len(test), "train or dev"),
    )


def similarity(cfg: Graded) -> Similarity:
    """Test pairs with a sentence that stands in dev too are left out, and counted in the note."""
    dev, given = list(_pairs(cfg, cfg.dev)), list(_pairs(cfg, cfg.test))
    seen = {text for pair in dev for text in (pair.first, pair.second)}
    test = [pair for pair in given if pair.first not in seen and pair.second not in seen]
    return Similarity(
        cfg.name,
        dev=at_most(dev, cfg.test_items),
        test=at_most(test, cfg.test_items),
        note=_repeated(len(given) - len(test), "dev"),
    )


def _repeated(n: int, where: str) -> str:
    return f"{n} test items left out that stand in {where} too" if n else ""


def _examples(cfg: Labelled, split: str) -> Iterator[Example]:
    where = getattr(cfg, split)
    for number, row in enumerate(rows(where), 1):
        text, label = str(_field(row, cfg.text, where, number)), str(_field(row, cfg.label, where, number))
        if label in cfg.drop or not text.strip():
            continue
        id = f"{split}:{number}"
        group = id if cfg.group is None else str(_field(row, cfg.group, where, number))
        yield Example(id, group, Input(text), label, text.split(maxsplit=1)[0])


def _pairs(cfg: Graded, where: str) -> Iterator[Pair]:
    for number, row in enumerate(rows(where), 1):
        first, second, score = (
            _field(row, name, where, number) for name in (cfg.first, cfg.second, cfg.score)
        )
        try:
            graded = float(score)
            if not math.isfinite(graded):
                raise ValueError
            yield Pair(str(number), str(number), str(first), str(second), graded)
        except (TypeError, ValueError):
            raise ConfigError(f"{where}:{number}: {cfg.score}={score!r} is no number") from None


def _dealt(given: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
    """All three splits: those that are missing are taken from train."""
    out: dict[str, list[Example]] = {
        "train": [],
        "dev": [],
        "test": [],
        **{k: v for k, v in given.items() if k != "train"},
    }
    missing = {name: share for name, share in _SHARES.items() if name not in given}
    for example in given["train"]:
        at = philox.generator(0, f"split of {example.group}").random()
        for name, share in missing.items():
            if at < share:
                out[name].append(example)
                break
            at -= share
        else:
            out["train"].append(example)
    return out


def rows(where: str) -> Iterator[Mapping[str, Any]]:
    """Of a file by its suffix, or of a data set. Raises DataError or ConfigError where it cannot be read."""
    path = Path(where).expanduser()
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in COMPRESSED), "").lower()
    if suffix in _JSON:
        yield from _json_lines(path)
    elif suffix in _TABLES:
        yield from _table(path, _TABLES[suffix])
    elif "@" in where:
        yield from _hub(where)
    else:
        raise ConfigError(
            f"{where} is neither a file of JSON lines (.jsonl) or of a table (.csv, .tsv), perhaps compressed, nor "
            "a data set with its split (NAME@SPLIT or NAME:CONFIG@SPLIT)"
        )


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not a line of JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(
                f'{path}:{number}: a line must be an object with named fields, such as {{"text": ...}}'
            )
        yield row


def _table(path: Path, delimiter: str) -> Iterator[Mapping[str, Any]]:
    text = b"\n".join(line for _, line in lines(path)).decode("utf-8-sig", errors="replace")
    csv.field_size_limit(_LONGEST)
    try:
        yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    except csv.Error as error:
        raise DataError(f"{path}: not a table ({error}): mend it, or write JSON lines") from None


def _hub(where: str) -> Iterable[Mapping[str, Any]]:
    from llmtrain.data.sources.hub import Hub

    named, _, split = where.rpartition("@")
    path, _, name = named.partition(":")
    return Hub(path=path, name=name or None, split=split, streaming=False).rows()


def _field(row: Mapping[str, Any], name: str, where: str, number: int) -> Any:
    if row.get(name) is None:
        raise ConfigError(
            f"{where}:{number}: no field {name!r} here, but {', '.join(map(str, row)) or 'nothing'}: name the fields "
            "in the config"
        )
    return row[name]
