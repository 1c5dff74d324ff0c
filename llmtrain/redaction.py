"""Secrets out of what is written down: configs, environments, logs and errors."""

import os
import re
from typing import Any

REDACTED = "<redacted>"

# of a variable or a key; not "tokens", which is a length
_NAME = re.compile(
    r"(?:^|[._-])(?:\w*_)?(?:api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE
)
_SHORTEST = 8  # characters: a shorter value of a variable would be found in ordinary words
_SHAPES = (
    re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),  # Hugging Face
    re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"),  # JSON web tokens
    re.compile(r"(?<=://)[^/\s@]*:[^/\s@]+(?=@)"),  # user:password@ of an address
    re.compile(
        r"(?<=[?&])(?:[\w-]*(?:signature|token|key|sig))=[^&\s'\"]+", re.IGNORECASE
    ),  # signed addresses
)
_GIVEN = re.compile(r"([\w.-]+)(=)([^\s,;}\]]+)")


def is_secret(name: str) -> bool:
    """Whether what goes by that name, a variable or the key of a config, is a secret."""
    return bool(_NAME.search(name))


def redact(text: str) -> str:
    """``text`` without the secrets in it.

    They are the values of this process's variables that are named as secrets are, what looks like a well-known kind
    of key, and what is given as ``NAME=VALUE`` under such a name.
    """
    for value in _of_environment():
        text = text.replace(value, REDACTED)
    for shape in _SHAPES:
        text = shape.sub(REDACTED, text)
    return _GIVEN.sub(lambda m: f"{m[1]}{m[2]}{REDACTED}" if is_secret(m[1]) else m[0], text)


def redacted(value: Any) -> Any:
    """Plain data without the secrets in it: the values under names of secrets, and those within texts."""
    if isinstance(value, dict):
        return {
            key: REDACTED if item and isinstance(item, str) and is_secret(str(key)) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _of_environment() -> list[str]:
    found = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)  # a secret may be a part of another
