"""``@config``: a frozen, keyword-only dataclass whose fields are checked when made; and its plain data."""

from dataclasses import MISSING, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make ``cls`` a config: frozen, keyword-only, unknown fields refused, values checked, numbers finite."""
    return dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)  # type: ignore[return-value]


def free(default: Any = MISSING, **kwargs: Any) -> Any:
    """A field that may differ when a run is continued: it decides how the work is done, not what comes out."""
    given = kwargs if default is MISSING else {"default": default, **kwargs}
    return field(metadata={"free": True}, **given)


def to_plain(value: Any, *, identity: bool = False) -> Any:
    """A config as plain data, each with its ``_target_`` first: what YAML files and hashes are made of.

    With ``identity`` the fields marked ``free`` are left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in fields(value) if not (identity and f.metadata.get("free"))]
        cls = type(value)
        plain = {f.name: to_plain(getattr(value, f.name), identity=identity) for f in kept}
        return {"_target_": f"{cls.__module__}.{cls.__qualname__}"} | plain
    if isinstance(value, dict):
        return {key: to_plain(item, identity=identity) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, identity=identity) for item in value]
    return str(value) if isinstance(value, Path) else value


def is_folder_name(text: str) -> bool:
    """Whether ``text`` names one folder directly within another, and leads nowhere else."""
    within = Path(text).name == text and text not in {"", ".", ".."}
    return within and "\\" not in text and text.isprintable()


def differences(ours: Any, theirs: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, our value, their value) wherever two trees of plain data differ, in the order of ours."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            d
            for key in keys
            for d in differences(ours.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}.{i}")]
    return [] if ours == theirs else [(path, ours, theirs)]
