"""From the words of a command line to a question: those that begin with ``sweep`` are a sweep's, others its runs'."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

from llmtrain.compose import CONFIGS, build, compose, keys
from llmtrain.errors import ConfigError
from llmtrain.overrides import parse
from llmtrain.sweep.settings import Sweep
from llmtrain.targets import check_targets, resolve
from llmtrain.typos import did_you_mean, nearest, nearest_keys

T = TypeVar("T")
LAUNCH = "launch"  # a key of questions that is chosen from a folder of configs/, too


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def sweep_from(words: Sequence[str]) -> Sweep:
    """The sweep that a command line describes; its words for train.py are checked too.

    Raises ConfigError in one line for whatever cannot work.
    """
    sweep, common = asked_in(words, "sweep", Sweep)  # type: ignore[type-abstract]
    sweep = dataclasses.replace(sweep, common=(*sweep.common, *common))
    for words_of_one in sweep.series.values():
        compose([*sweep.common, *words_of_one])
    return sweep


def asked_in(words: Sequence[str], group: str, kind: type[T]) -> tuple[T, list[str]]:
    """The question of a command line, of one ``kind``, and the words that are not its own but its runs'.

    Its own begin with ``group``, the folder of configs/ that it is chosen from; without a choice it is the quickstart.
    """
    own = [word for word in words if word.partition("=")[0] == group or word.startswith(f"{group}.")]
    chosen = [word.partition("=")[2] for word in own if word.startswith(f"{group}=")]
    name = chosen[-1] if chosen else "quickstart"
    cfg = _read(group, name, group)
    for override in parse([word for word in own if word.startswith(f"{group}.")], {}):
        _apply(cfg, group, override.key.removeprefix(f"{group}."), override.value)
    check_targets(cfg)
    if not issubclass(resolve(cfg["_target_"]), kind):
        home = kind.__module__.rpartition(".")[0]
        raise ConfigError(f"_target_={cfg['_target_']} is no {group}: at the root it must be one of {home}")
    return build(cfg), [word for word in words if word not in own]


def _read(group: str, name: str, key: str) -> dict[str, Any]:
    """The file of configs/``group`` that ``key`` chooses by its name."""
    if name not in choices(group):
        near = nearest(name, choices(group))
        raise ConfigError(f"unknown choice {key}={name}: {did_you_mean(near, choices(group))}")
    cfg: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return cfg


def _apply(cfg: dict[str, Any], group: str, key: str, value: Any) -> None:
    if key == LAUNCH and isinstance(value, str):
        value = _read(LAUNCH, value, f"{group}.{key}")
    *parents, leaf = key.split(".")
    node: Any = cfg
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    free = isinstance(node, dict) and "_target_" not in node  # names of the user's own
    if not isinstance(node, dict) or (leaf not in node and not free):
        near = [f"{group}.{k}" for k in nearest_keys(key, keys(cfg))]
        raise ConfigError(
            f"unknown key {group}.{key}: {did_you_mean(near, [f'{group}.{k}' for k in cfg if k != '_target_'])}"
        )
    node[leaf] = value
