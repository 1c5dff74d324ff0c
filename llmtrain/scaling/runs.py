"""Runs from folders of ``record.json``: what may be fitted together, and what is left out, with its reason."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.errors import ConfigError, DataError
from llmtrain.record import RunRecord, Score
from llmtrain.scaling.alike import SHARED, Unlike, first_unlike, unlike
from llmtrain.scaling.flops import SIX_ND, measured
from llmtrain.scaling.points import About, Excluded, Points
from llmtrain.typos import did_you_mean, nearest

# parameters N in fits
N_CONVENTIONS: dict[str, Callable[[RunRecord], int]] = {
    # one token's parameters without the input table; a head tied to it counts once, and one that pools is not tied
    "fit": lambda r: r.n.active - (r.n.embedding if r.n.head or r.pairs is not None else 0),
    "total": lambda r: r.n.total,
    "active": lambda r: r.n.active,
    "non_embedding": lambda r: r.n.non_embedding,
}
N_SAID = {
    "fit": "active parameters without the input embedding, the head once",
    "total": "all parameters",
    "active": "active parameters, embeddings included",
    "non_embedding": "parameters without the input embedding",
}
_FLOPS = ("flops_model", "flops_6nd")
_RECORD = "record.json"


def read_runs(
    folder: Path, *, n: str = "fit", c: str = "flops_model", loss: str = "score", series: str | None = None
) -> list[Points]:
    """The points of each series under ``folder``, at any depth.

    ``loss`` is "score", "bits_per_byte" or the name of a held-out score. Raises DataError where runs cannot be
    compared: other scores, corpora, tokenizers or versions of Python.
    """
    count = _chosen(n, N_CONVENTIONS, "--n")
    _chosen(c, {name: name for name in _FLOPS}, "--c")
    paths = sorted(folder.rglob(_RECORD))
    records = [(name, _read(path)) for name, path in zip(_names(folder, paths), paths, strict=True)]
    if not records:
        raise DataError(f"{folder}: there is no {_RECORD} of a finished run in it")
    excluded = [
        Excluded(path.parent.name, "not finished: it has no record.json")
        for path in sorted(folder.rglob("config.yaml"))
        if not (path.parent / _RECORD).exists()
    ]
    excluded += [Excluded(name, r.status) for name, r in records if r.status != "finished"]
    records = [(name, r) for name, r in records if r.status == "finished"]
    originals: dict[str, str] = {}
    for name, record in records:
        if (first := originals.setdefault(repr(record), name)) != name:
            excluded.append(Excluded(name, f"a copy of {first}"))
    records = [(name, r) for name, r in records if originals[repr(r)] == name]
    if not records:
        raise DataError(
            f"{folder}: no run of {len(paths)} finished ({', '.join({e.reason for e in excluded})})"
        )
    _require_alike(folder, first_unlike(dict(records), SHARED.values()))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    groups: dict[str, list[tuple[str, RunRecord]]] = {}
    for name, record in records:
        groups.setdefault(record.series, []).append((name, record))
    if series is not None:
        groups = {series: groups[_known_series(series, groups)]}
    return [
        _points(folder, key, group, count, N_SAID[n], c, loss, digest, tuple(excluded))
        for key, group in groups.items()
    ]


def _names(folder: Path, paths: list[Path]) -> list[str]:
    """Of runs: their folders' names, or the way to them where two have one name."""
    names = [path.parent.name for path in paths]
    alike = len(set(names)) < len(names)
    return [path.parent.relative_to(folder).as_posix() for path in paths] if alike else names


def _points(
    folder: Path,
    series: str,
    records: list[tuple[str, RunRecord]],
    count: Callable[[RunRecord], int],
    n_said: str,
    c_name: str,
    loss: str,
    digest: str,
    excluded: tuple[Excluded, ...],
) -> Points:
    scores = {name: _score(name, r, loss) for name, r in records}
    units = {name: f"{score.name} ({score.unit})" for name, score in scores.items()}
    _require_alike(folder, unlike(units, f"scores in series {series}"))
    hashes = {name: score.eval_hash for name, score in scores.items()}
    _require_alike(folder, unlike(hashes, f"held-out sets in series {series}"))
    names = np.array([name for name, _ in records])
    pairs = {r.pairs is not None for _, r in records}
    if len(pairs) > 1:
        raise DataError(f"{folder}: series {series} counts its data in pairs and in tokens; fit them apart")
    x = {
        "n": _column([count(r) for _, r in records]),
        "d": _column([r.pairs if r.pairs is not None else r.raw_tokens for _, r in records]),
        "c": _column([_flops(name, r, c_name) for name, r in records]),
        "unique": _column([r.unique_tokens for _, r in records]),
    }
    trunks = [r.trunk or name for name, r in records]
    score = scores[records[0][0]]
    _, first = records[0]
    alike: dict[str, Any] = {field: shared.of(first) for field, shared in SHARED.items()}
    return Points(
        x=x,
        loss=_positive(folder, names, _column([s.value for s in scores.values()])),
        weight=np.ones(len(records)),
        run=names,
        unit=np.unique(trunks, return_inverse=True)[1],
        unit_name="trunk" if any(r.trunk for _, r in records) else "run",
        convention=SIX_ND if c_name == "flops_6nd" else measured(x["n"], x["d"], x["c"], c_name),
        about=About(
            source=str(folder),
            sha256=digest,
            series=series,
            score=score.name,
            score_unit=score.unit,
            eval_hash=score.eval_hash,
            n_convention=n_said,
            tokens_unit="pairs" if pairs == {True} else "tokens",
            **alike,
        ),
        excluded=excluded,
        more={
            "epochs": _column([r.epochs for _, r in records]),
            "lr": _column([r.lr for _, r in records]),
            "warmup": _column([r.warmup_steps / max(1, r.steps) for _, r in records]),
            "matched": _column([float(r.decayed and r.horizon_steps == r.steps) for _, r in records]),
            "steps": _column([r.steps for _, r in records]),
        },
    )


def _read(path: Path) -> RunRecord:
    try:
        return RunRecord.read(path)
    except (ValueError, TypeError) as error:  # of JSON, or of the schema
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is no record of a run: {line}") from None


def _score(name: str, record: RunRecord, wanted: str) -> Score:
    if wanted == "score":
        return record.score
    if wanted == "bits_per_byte" and record.bits_per_byte is not None:
        return replace(record.score, name=wanted, value=record.bits_per_byte, unit="bits/byte")
    if wanted in record.validation:
        return record.validation[wanted]
    names = ["score", *(["bits_per_byte"] if record.bits_per_byte is not None else []), *record.validation]
    raise ConfigError(
        f"--loss {wanted}: run {name} has no such score; {did_you_mean(nearest(wanted, names), names)}"
    )


def _flops(name: str, record: RunRecord, wanted: str) -> int:
    if wanted == "flops_model":
        return record.flops_model
    if record.flops_6nd is None:
        raise ConfigError(
            f"--c flops_6nd: it means nothing for run {name} (two stacks or towers); take flops_model"
        )
    return record.flops_6nd


def _require_alike(folder: Path, found: Unlike | None) -> None:
    if found is not None:
        raise DataError(
            f"{folder}: the runs have different {found.many} ({found.first}: {found.value}; {found.other}: "
            f"{found.its}), and such runs do not go into one fit; keep them in folders of their own"
        )


def _chosen(name: str, choices: dict[str, Any], option: str) -> Any:
    if name not in choices:
        raise ConfigError(
            f"{option} {name}: for a folder of runs {did_you_mean(nearest(name, choices), choices)}"
        )
    return choices[name]


def _known_series(name: str, groups: dict[str, Any]) -> str:
    if name not in groups:
        raise ConfigError(f"--series {name}: {did_you_mean(nearest(name, groups), groups)}")
    return name


def _column(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=float)


def _positive(folder: Path, names: np.ndarray, values: np.ndarray) -> np.ndarray:
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{folder}: the score of run {names[i]} is {values[i]:g}, and a fit needs numbers above 0"
        )
    return values
