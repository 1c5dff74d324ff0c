"""A plan on disk: written before anything runs, and read back only for the question that it answers."""

import copy
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from llmtrain.config import differences
from llmtrain.errors import ConfigError
from llmtrain.run_folder import write_text

FILE = "plan.json"
T = TypeVar("T")


def write_plan(plan: Any, digest: str, folder: Path) -> None:
    """``plan`` is a config; ``digest`` stands before its fields."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"sha256": digest} | TypeAdapter(type(plan)).dump_python(plan, mode="json")
    write_text(folder / FILE, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def read_plan(
    schema: type[T], folder: Path, *, group: str, question: dict[str, Any], free: Collection[str]
) -> T | None:
    """The plan in ``folder``; ConfigError where it is another question's, with the differences.

    ``question`` is what the plan holds under ``group``; its keys that are ``free``, those of parts with a dot, decide
    how it is answered alone.
    """
    path = folder / FILE
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    del kept["sha256"]
    ours = copy.deepcopy(question)
    for key in free:
        _set(ours, key, kept[group])
    if changed := differences(ours, kept[group]):
        shown = "; ".join(f"{key}: {json.dumps(b)} there, {json.dumps(a)} now" for key, a, b in changed[:6])
        raise ConfigError(f"{folder} holds another {group}: {shown}. Give another name ({group}.name=...)")
    return TypeAdapter(schema).validate_python(kept)


def _set(plain: dict[str, Any], key: str, other: dict[str, Any]) -> None:
    """Let ``plain`` have what ``other`` has under ``key``."""
    *parents, leaf = key.split(".")
    for part in parents:
        plain, other = plain[part], other[part]
    plain[leaf] = other[leaf]
