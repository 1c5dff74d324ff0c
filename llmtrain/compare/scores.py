"""What one contestant measured, on disk: kept until the model, the texts or the yardsticks change."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import TypeAdapter

from llmtrain.compare.saved import Whose
from llmtrain.evaluation.base import Items, Measured
from llmtrain.run_folder import write_text

FOLDER = "scores"  # of the comparison's
_VERSION = 1


class Scores(NamedTuple):
    key: str  # of all that they are made of
    seconds: float
    measured: list[tuple[Whose, Measured]]
    features: Float[np.ndarray, "N D"] | None = None  # of the same texts for all models; none of a baseline


def path_of(folder: Path, contestant: str) -> Path:
    """``folder`` is the comparison's."""
    return folder / FOLDER / f"{contestant}.json"


def write_scores(path: Path, scores: Scores) -> None:
    """Whole or not at all; features lie beside it."""
    plain = {
        "version": _VERSION,
        "key": scores.key,
        "seconds": round(scores.seconds, 3),
        "measured": [_plain(whose, one) for whose, one in scores.measured],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if scores.features is not None:
        np.save(path.with_suffix(".npy"), scores.features)
    write_text(path, json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")


def read_scores(path: Path, key: str) -> Scores | None:
    """The scores in ``path``; none where there are none, or they are of something else."""
    if not path.exists():
        return None
    plain = json.loads(path.read_text(encoding="utf-8"))
    if plain["version"] != _VERSION or plain["key"] != key:
        return None
    features = path.with_suffix(".npy")
    return Scores(
        key,
        plain["seconds"],
        [_read(one) for one in plain["measured"]],
        np.load(features, allow_pickle=False) if features.exists() else None,
    )


def _plain(whose: Whose, one: Measured) -> dict[str, Any]:
    items = one.items
    return {
        "whose": TypeAdapter(Whose).dump_python(whose, mode="json"),
        **one._replace(items=None)._asdict(),
        "items": items and _lists(items),
    }


def _lists(items: Items) -> dict[str, Any]:
    weight: Sequence[float] | None = None if items.weight is None else items.weight.tolist()
    return {"id": items.id, "group": items.group, "value": items.value.tolist(), "weight": weight}


def _read(plain: dict[str, Any]) -> tuple[Whose, Measured]:
    whose, items = Whose(**plain.pop("whose")), plain.pop("items")
    interval = plain.pop("interval")
    return whose, Measured(
        **plain, interval=interval and tuple(interval), items=None if items is None else _items(items)
    )


def _items(plain: dict[str, Any]) -> Items:
    weight = plain["weight"]
    return Items(
        tuple(plain["id"]),
        tuple(plain["group"]),
        np.array(plain["value"], float),
        None if weight is None else np.array(weight, float),
    )
