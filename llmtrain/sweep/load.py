"""From the words of a command line to a sweep: those that begin with ``sweep`` are its own, all others its runs'."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from llmtrain.compose import CONFIGS, build, compose, keys
from llmtrain.errors import ConfigError
from llmtrain.overrides import parse
from llmtrain.sweep.settings import Sweep
from llmtrain.targets import check_targets, resolve
from llmtrain.typos import did_you_mean, nearest, nearest_keys

FOLDER = CONFIGS / "sweep"


def choices() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def sweep_from(words: Sequence[str]) -> Sweep:
    """The sweep that a command line describes; its words for train.py are checked too.

    Raises ConfigError in one line for whatever cannot work.
    """
    own = [word for word in words if word.partition("=")[0] == "sweep" or word.startswith("sweep.")]
    common = [word for word in words if word not in own]
    chosen = [word.partition("=")[2] for word in own if word.startswith("sweep=")]
    name = chosen[-1] if chosen else "quickstart"
    if name not in choices():
        near = nearest(name, choices())
        raise ConfigError(f"unknown choice sweep={name}: {did_you_mean(near, choices())}")
    cfg: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    for override in parse([word for word in own if word.startswith("sweep.")], {}):
        _apply(cfg, override.key.removeprefix("sweep."), override.value)
    check_targets(cfg)
    if not issubclass(resolve(cfg["_target_"]), Sweep):
        raise ConfigError(
            f"_target_={cfg['_target_']} is no sweep: at the root it must be one of llmtrain.sweep"
        )
    sweep: Sweep = build(cfg)
    sweep = dataclasses.replace(sweep, common=(*sweep.common, *common))
    for words_of_one in sweep.series.values():
        compose([*sweep.common, *words_of_one])
    return sweep


def _apply(cfg: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node: Any = cfg
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    free = isinstance(node, dict) and "_target_" not in node  # names of the user's own
    if not isinstance(node, dict) or (leaf not in node and not free):
        near = [f"sweep.{k}" for k in nearest_keys(key, keys(cfg))]
        raise ConfigError(
            f"unknown key sweep.{key}: {did_you_mean(near, [f'sweep.{k}' for k in cfg if k != '_target_'])}"
        )
    node[leaf] = value
