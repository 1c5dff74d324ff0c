"""The YAML files are the reference manual: every field is there, and every experiment makes a run."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from llmtrain.compose import CONFIGS, LENGTHS, choices, compose, defaults, run_from
from llmtrain.help import description, entries_of
from llmtrain.run import LENGTHS as LENGTHS_OF_A_RUN
from llmtrain.targets import check_targets, resolve

FILES = sorted(CONFIGS.rglob("*.yaml"))
GROUP_FILES = [p for p in FILES if p.parent != CONFIGS and p.parent.name != "experiment"]
EXPERIMENTS = choices()["experiment"]


def named(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def composed(name: str) -> Any:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(name), resolve=False)


def nodes(node: Any) -> Iterator[dict]:
    """Every mapping that names a class."""
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def lists_every_field(config: Any) -> None:
    check_targets(config)
    for node in nodes(config):
        said = {key for key in node if not key.startswith("_")}
        cls = resolve(node["_target_"])
        assert said == {field.name for field in fields(cls)}, node["_target_"]  # type: ignore[arg-type]


@pytest.mark.parametrize("path", GROUP_FILES, ids=named)
def test_a_file_lists_every_field_of_its_class_with_values_that_it_takes(path):
    config = composed(named(path))[path.parent.name]
    lists_every_field(config)
    hydra.utils.instantiate(given(config), _convert_="all")


def given(node: Any) -> Any:
    """A config with something in the place of what a user must give."""
    if isinstance(node, dict):
        return {key: given(value) for key, value in node.items()}
    if isinstance(node, list):
        return [given(value) for value in node]
    return "given" if node == "???" else node


def test_the_root_lists_every_field_of_a_run():
    lists_every_field(OmegaConf.to_container(compose([])))


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != CONFIGS], ids=named)
def test_a_file_says_in_its_first_line_what_it_is(path):
    assert len(description(path)) > 10


@pytest.mark.parametrize("path", [p for p in GROUP_FILES if p.parent.name != "size"], ids=named)
def test_a_value_that_is_one_of_several_words_says_which(path):
    for entry in entries_of(path):
        assert entry.value not in {"auto", "stop", "replace", "skip"} or "|" in entry.comment, entry


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_makes_a_run_that_is_named_after_its_choices(experiment):
    run = run_from([f"experiment={experiment}"])
    assert run.labels.experiment == experiment
    assert None not in (run.labels.objective, run.labels.architecture)
    assert run.folder.name.startswith(experiment)


def test_defaults_name_files_that_exist():
    for group, name in defaults().items():
        assert name in choices()[group]


def test_the_lengths_that_step_back_for_one_another_are_those_of_a_run():
    assert LENGTHS == LENGTHS_OF_A_RUN
