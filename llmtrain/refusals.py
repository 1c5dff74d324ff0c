"""One clear line for what a config class refused: dotted key, what it got, what is allowed."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from llmtrain.errors import ConfigError, UserError
from llmtrain.targets import resolve
from llmtrain.typos import did_you_mean, nearest


def refusal(error: Exception, plain: Mapping[str, Any]) -> BaseException:
    """The error to raise instead of Hydra's ``error`` from building ``plain``.

    What a user can mend becomes a ConfigError; anything else is a bug of ours and comes back as it was.
    """
    from pydantic import ValidationError

    cause = error.__cause__ or error
    key = _key(error)
    if isinstance(cause, ValidationError):
        lines = [_line(one, key, plain) for one in cause.errors()]
        return ConfigError("; ".join(dict.fromkeys(lines)))
    if isinstance(cause, UserError) and not isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, ValueError | TypeError):
        return ConfigError(_placed(str(cause), key))
    return cause


def _key(error: Exception) -> str:
    found = re.search(r"\nfull_key: (.+)$", str(error))
    return re.sub(r"\[(\d+)\]", r".\1", found.group(1)) if found else ""


def _line(error: Any, key: str, plain: Mapping[str, Any]) -> str:
    """One of pydantic's errors about the fields of the class at ``key``."""
    if error["type"] == "value_error":
        return _placed(str(error["ctx"]["error"]), key)
    # of a union pydantic adds a part for each member that it tried; the fields and items come first
    at = ".".join(
        str(part) for part in (key, *error["loc"]) if part != "" and re.fullmatch(r"\w+", str(part))
    )
    got = error["input"]
    if error["type"] == "unexpected_keyword_argument":
        target = _target(plain, key)
        names = [field.name for field in fields(resolve(target))]
        wrong = at.rpartition(".")[2]
        return f"unknown key {at}: {did_you_mean(nearest(wrong, names), names)}"
    if error["type"].startswith("missing"):
        return f"{at} must be given: add {at}=VALUE"
    shown = type(got).__name__ if hasattr(got, "__dataclass_fields__") else repr(got)
    return f"{at}: got {shown}, expected {_expected(error)}"


def _expected(error: Any) -> str:
    text = str(error["msg"]).removeprefix("Input should be ")
    return re.split(r", (?:unable|got)", text)[0]


def _placed(text: str, key: str) -> str:
    """A message of a class's own, with its place where it does not name it."""
    line = " ".join(text.split())
    return line if not key or key in line else f"{key}: {line}"


def _target(plain: Any, key: str) -> str:
    for part in key.split(".") if key else ():
        plain = plain[int(part)] if isinstance(plain, list) else plain[part]
    return str(plain["_target_"])
