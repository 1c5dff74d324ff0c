"""Every config that a group can be chosen from, as plain mappings."""

from functools import cache
from typing import Any

import hydra
from omegaconf import OmegaConf

from llmtrain.compose import CONFIGS, choices, compose

GROUPS = {group: names for group, names in choices().items() if group != "experiment"}


@cache
def default() -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose([]), resolve=True)
    return config


@cache
def roots() -> dict[str, dict[str, Any]]:
    """By choice of a group, the config with that file in it; of sizes, which have the same keys, two."""
    found, standing = {}, default()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for group, names in GROUPS.items():
            for name in ("d4", "n") if group == "size" else names:
                chosen: Any = OmegaConf.to_container(hydra.compose(f"{group}/{name}"), resolve=False)
                found[f"{group}={name}"] = standing | {group: given(chosen[group])}
    return found


def given(node: Any) -> Any:
    """With something in the place of what a user must give."""
    if isinstance(node, dict):
        return {key: given(value) for key, value in node.items()}
    if isinstance(node, list):
        return [given(value) for value in node]
    return "given" if node == "???" else node


def at(node: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node
