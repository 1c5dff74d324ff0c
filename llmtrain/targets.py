"""What a config may name: classes of this package or of one that the user trusts, and nothing that runs by itself."""

import importlib
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from llmtrain.errors import ConfigError

TRUST_FILE = Path(".config/llmtrain/trusted.txt")  # under the home folder of the user
CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
REFERENCE = re.compile(r"\$\{\.*[\w.]+\}")  # ${key}: another value of the config, and no resolver


def check_targets(node: Any, key: str = "") -> None:
    """Refuse, before anything is imported, a config that could run what is not allowed.

    Every ``_target_`` must lie in an allowed package, no other key of Hydra's may be there, and an interpolation may
    only name another key. Raises ConfigError with the place and the way out.
    """
    allowed = ("llmtrain", *trusted())
    for path, name, value in _items(node, key):
        if name == "_target_":
            _check_name(path, value, allowed)
        elif name == "_convert_" and path == name:
            _check_convert(value)
        elif re.fullmatch(r"_\w+_", name):
            raise ConfigError(f"{path}: {name} is not allowed in a config, only _target_ is")
        elif isinstance(value, str):
            _check_interpolation(path, value)


def resolve(target: str, key: str = "_target_") -> type:
    """The config class that ``target`` names.

    Raises ConfigError where there is none, or where the name leads to something else: a function, a module, a class
    from elsewhere that the module merely imports.
    """
    allowed = ("llmtrain", *trusted())
    _check_name(key, target, allowed)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"{key}={target}: there is no such class ({error})") from None
    if not (isinstance(found, type) and is_dataclass(found) and hasattr(found, "__pydantic_validator__")):
        raise ConfigError(
            f"{key}={target} is no config: only classes made by llmtrain.config.config may be named"
        )
    if not _within(found.__module__, allowed):
        raise ConfigError(
            f"{key}={target} is really {found.__module__}.{found.__qualname__}, which is not allowed"
        )
    return found


def targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every ``_target_``."""
    for path, name, value in _items(node, key):
        if name == "_target_":
            yield path, value


def trusted() -> tuple[str, ...]:
    """The packages that the user allows besides ours, one a line of a file that nobody else can write.

    No variable (HOME and XDG_CONFIG_HOME neither), key or option widens it, so that a config, a command or a script
    from elsewhere cannot.
    """
    path = _home() / TRUST_FILE
    if not path.is_file():
        return ()
    stat = path.stat()
    if stat.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"{path} belongs to another user, so it is not trusted: write one of your own")
    if stat.st_mode & 0o022:
        raise ConfigError(f"{path} can be written by others, so it is not trusted: chmod go-w {path}")
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


def _home() -> Path:
    """The home folder that the system knows for this user."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a number without a name, as in some containers
        return Path("/nonexistent")


def _items(node: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    """(dotted key, its last part, value) of everything below ``node``."""
    if isinstance(node, dict):
        pairs = [(str(name), value) for name, value in node.items()]
    elif isinstance(node, list):
        pairs = [(str(i), value) for i, value in enumerate(node)]
    else:
        return
    for name, value in pairs:
        path = f"{key}.{name}" if key else name
        yield path, name, value
        yield from _items(value, path)


def _check_name(path: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not (isinstance(value, str) and CLASS.fullmatch(value)):
        raise ConfigError(f"{path}={value!r} names no class: give it as package.module.Class")
    if not _within(value, allowed):
        package = value.partition(".")[0]
        raise ConfigError(
            f"{path}={value} is outside llmtrain and is not run: if you trust that package, add the line {package!r} "
            f"to ~/{TRUST_FILE}"
        )


def _check_convert(value: Any) -> None:
    if value != "all":
        raise ConfigError(f"_convert_={value!r}: only all is allowed")


def _check_interpolation(path: str, value: str) -> None:
    if "${" in REFERENCE.sub("", value):
        raise ConfigError(
            f"{path}={value}: only another key may be referred to, as in ${{seed}}; resolvers are not run"
        )


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
