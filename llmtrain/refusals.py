"""One clear line for what a config class refused: dotted key, what it got, what is allowed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from llmtrain.errors import ConfigError, UserError
from llmtrain.targets import resolve
from llmtrain.typos import did_you_mean, nearest

SHOWN = 3  # mistakes in one line


def refusal(error: Exception, plain: Mapping[str, Any]) -> BaseException:
    """The error to raise instead of Hydra's ``error`` from building ``plain``.

    What a user can mend becomes a ConfigError; anything else is a bug of ours and comes back as it was.
    """
    from pydantic import ValidationError

    cause = error.__cause__ or error
    key = _key(error, plain)
    if isinstance(cause, ValidationError):
        return ConfigError(_line(cause.errors(), key, plain))
    if isinstance(cause, UserError) and not isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, ValueError | TypeError):
        return ConfigError(_placed(str(cause), key, plain))
    return cause


def _key(error: Exception, plain: Any) -> str:
    """Where in the config the class stands, as Hydra ends its message with it; empty at the root."""
    found = re.search(r"\nfull_key: (.+)$", str(error))
    parts = re.sub(r"\[(\d+)\]", r".\1", found.group(1)).split(".") if found else []
    # of the item of a list it says layers0
    split = re.fullmatch(r"(.*?)(\d+)", parts[-1]) if parts else None
    if split and isinstance(_inside(plain, [*parts[:-1], split[1]])[1], list):
        parts[-1:] = split.groups()
    return ".".join(parts)


def _line(errors: Sequence[Any], key: str, plain: Any) -> str:
    """Pydantic's errors about the fields of the class at ``key``."""
    parents = key.split(".") if key else []
    node = _inside(plain, parents)[1]
    said: list[str] = []
    expected: dict[tuple[str, str], list[str]] = {}  # by (key, what it got): a union has one for each member
    for error in errors:
        if error["type"] == "value_error":
            said.append(_placed(str(error["ctx"]["error"]), key, plain))
        elif error["type"] == "unexpected_keyword_argument":
            said.append(_unknown(key, node, error["loc"]))
        elif error["type"] == "missing" and isinstance(error["loc"][-1], str):
            at = ".".join([*parents, *map(str, error["loc"])])
            said.append(f"{at} must be given: add {at}=VALUE")
        else:
            found, value = _inside(node, error["loc"])
            expected.setdefault((".".join([*parents, *found]), _shown(value)), []).append(_expected(error))
    said += [f"{at}: got {got}, expected {' or '.join(texts)}" for (at, got), texts in expected.items()]
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return "; ".join(said[:SHOWN]) + more


def _inside(node: Any, parts: Sequence[Any]) -> tuple[list[str], Any]:
    """How far a path leads, and the value there: pydantic adds a part for each member of a union that it tried."""
    found: list[str] = []
    for part in parts:
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (LookupError, TypeError, ValueError):
            break
        found.append(str(part))
    return found, node


def _unknown(key: str, node: Any, loc: Sequence[Any]) -> str:
    *inner, wrong = map(str, loc)
    holder = _inside(node, inner)[1]
    names = [f.name for f in fields(resolve(holder["_target_"]))] if "_target_" in holder else []
    at = ".".join([*([key] if key else []), *inner, wrong])
    return f"unknown key {at}" + (f": {did_you_mean(nearest(wrong, names), names)}" if names else "")


def _expected(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        allowed = context["expected"]
        near = nearest(str(error["input"]), re.findall(r"'([^']*)'", allowed))
        return f"{allowed} (did you mean {near[0]}?)" if near else allowed
    if kind in {"too_long", "too_short"}:
        most = kind == "too_long"
        return f"at {'most' if most else 'least'} {context['max_length' if most else 'min_length']} items"
    if kind == "missing":
        return f"at least {error['loc'][-1] + 1} items"
    text = re.split(r", (?:unable|got)", str(error["msg"]).removeprefix("Input should be "))[0]
    text = text.replace("a valid tuple", "a list").replace(
        "a dictionary or an instance of", "a config of class"
    )
    return (
        f"a number {text}"
        if text.startswith(("greater", "less"))
        else re.sub(r"a valid (?=integer)", "an ", text).replace("a valid", "a")
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("_target_", "a mapping"))
    return "null" if value is None else repr(value)


def _placed(text: str, key: str, plain: Any) -> str:
    """A message of a class's own, with its place where it does not name it.

    A class begins it with the field, as it does not know where in the config it stands.
    """
    line = " ".join(text.split())
    if not key or re.search(rf"(?<![\w.]){re.escape(key)}\b", line):
        return line
    node = _inside(plain, key.split("."))[1]
    group = key.partition(".")[0]
    if line.startswith(f"{group}."):  # as it stands most often
        line = line.removeprefix(f"{group}.")
    field = re.match(r"\w+", line)
    return f"{key}.{line}" if field and isinstance(node, dict) and field[0] in node else f"{key}: {line}"
