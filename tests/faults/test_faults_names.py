"""Fault F41: a slip in any name is answered with the name that was meant, in one line."""

import copy
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from answers import refused as answer
from chosen import at, default, roots
from llmtrain.compose import CONFIGS, build, choices, compose, keys
from llmtrain.errors import ConfigError
from llmtrain.philox import generator
from llmtrain.typos import nearest_keys
from runs import REPO

LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def slips(word: str, rng: np.random.Generator) -> Iterator[str]:
    """One letter less, one more, another one, and two swapped."""
    at, letter = int(rng.integers(len(word))), LETTERS[rng.integers(len(LETTERS))]
    yield word[:at] + word[at + 1 :]
    yield word[:at] + letter + word[at:]
    yield word[:at] + letter + word[at + 1 :]
    yield word[:at] + word[at : at + 2][::-1] + word[at + 2 :]


def suggestion(line: str) -> str | None:
    found = re.search(r"did you mean ([^ ?]+)", line)
    return found[1] if found else None


@pytest.mark.fault("F41")
def test_a_slip_in_any_key_is_answered_with_that_key_first() -> None:
    rng, seen, tried, wrong_first = generator(0, "slips in keys"), set[str](), 0, []
    for root in roots().values():
        known = [*choices(), *keys(root)]
        for key in [key for key in known if key not in seen]:
            seen.add(key)
            for slip in slips(key, rng):
                if slip and slip not in known:
                    tried += 1
                    found = nearest_keys(slip, known)
                    wrong_first += [(slip, key, found[:2])] if found[:1] != [key] else []
    rate = 1 - len(wrong_first) / tried
    assert tried > 900
    assert rate >= 0.95, f"{rate:.1%} of {tried}: {wrong_first[:20]}"


@pytest.mark.fault("F41")
@pytest.mark.parametrize("mark", ["", "+", "++"])
def test_a_slip_on_the_command_line_is_refused_whatever_stands_before_it(mark: str) -> None:
    rng, known = generator(0, f"slips with {mark}"), {*choices(), *keys(default())}
    for key in [key for key in keys(default()) if not key.startswith("data.held_out.")][::4]:
        for slip in slips(key, rng):
            if slip and slip not in known:
                with pytest.raises(ConfigError, match=r"unknown key .*(did you mean|there are) ") as refused:
                    compose([f"{mark}{slip}=1"])
                assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.fault("F41")
def test_a_slip_in_any_field_of_a_file_is_answered_with_that_field_first() -> None:
    """As in a YAML file of the user's own, or in a mapping given as one value: the classes themselves refuse."""
    rng, tried, wrong_first, seen = generator(0, "slips in fields"), 0, [], set()
    for choice, whole in roots().items():
        group = choice.partition("=")[0]
        root = {group: whole[group]}
        for path, node in classes(root):
            for name in [n for n in node if not n.startswith("_") and (node["_target_"], n) not in seen]:
                seen.add((node["_target_"], name))
                for slip in [list(slips(name, rng))[len(seen) % 4]]:  # of the four, one
                    if slip in node or not slip:
                        continue
                    changed = copy.deepcopy(root)
                    holder = at(changed, path)
                    holder[slip] = holder.pop(name)
                    with pytest.raises(ConfigError) as refused:
                        build(changed)
                    tried += 1
                    line = str(refused.value)
                    if f"unknown key {'.'.join([*path, slip])}" not in line or suggestion(line) != name:
                        wrong_first.append((slip, name, line))
    rate = 1 - len(wrong_first) / tried
    assert tried > 100
    assert rate >= 0.95, f"{rate:.1%} of {tried}: {wrong_first[:20]}"


def classes(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(node, dict) and "_target_" in node:
        yield path, node
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, inner in pairs:
        yield from classes(inner, (*path, str(name)))


@pytest.mark.fault("F41")
def test_a_slip_in_the_name_of_a_choice_is_answered_with_that_choice_first() -> None:
    rng, tried, wrong_first = generator(0, "slips in choices"), 0, []
    for group, names in choices().items():
        for name in names:
            for slip in slips(name, rng):
                if slip in names or len(slip) < 3:
                    continue  # another choice; or too short to be like any
                line = answer(f"{group}={slip}")
                tried += 1
                if suggestion(line) != f"{group}={name}":
                    wrong_first.append((slip, name))
                assert line.endswith(", ".join(names))
    rate = 1 - len(wrong_first) / tried
    assert tried > 150
    assert rate >= 0.95, f"{rate:.1%} of {tried}: {wrong_first}"


@pytest.mark.fault("F41")
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("optim: {lrr: 1}", "optim.lr"),
        ("sed: 3", "seed"),
        ("defaults: [{override /model: dens}]", "model/dense"),
        ("defaults: [{override /modle: dense}]", "model"),
        ("defaults: [{override /objective: mlmm}]", "objective/mlm"),
    ],
)
def test_a_slip_in_an_experiment_of_the_users_own_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, meant: str
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr("llmtrain.compose.CONFIGS", tmp_path / "configs")
    mine = tmp_path / "configs" / "experiment" / "mine.yaml"
    mine.write_text(f"# @package _global_\n# Mine.\n{text}\n")
    assert suggestion(answer("experiment=mine")) == meant


@pytest.mark.fault("F41")
def test_the_command_answers_a_slip_in_less_than_three_seconds_without_a_traceback() -> None:
    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime  # of the processor: what else the machine does does not count

    before = seconds()
    done = subprocess.run([sys.executable, "train.py", "optm.lr=1"], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key optm.lr: did you mean optim.lr?\n"
    assert seconds() - before < 3
