"""Faults F41 to F44: what a config gets wrong is answered before anything runs, in one line with the way out."""

import copy
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from llmtrain.compose import CONFIGS, build, choices, compose, instantiate, keys, run_from
from llmtrain.errors import ConfigError
from llmtrain.philox import generator
from llmtrain.pretrain import split_batch
from llmtrain.typos import nearest_keys
from runs import REPO, tiny
from tests.matrix import OBJECTIVES, SEQ_LEN
from tests.tiny import ARCHS

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
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


def slips(word: str, rng: np.random.Generator) -> Iterator[str]:
    """One letter less, one more, another one, and two swapped."""
    at, letter = int(rng.integers(len(word))), LETTERS[rng.integers(len(LETTERS))]
    yield word[:at] + word[at + 1 :]
    yield word[:at] + letter + word[at:]
    yield word[:at] + letter + word[at + 1 :]
    yield word[:at] + word[at : at + 2][::-1] + word[at + 2 :]


def answer(*words: str) -> str:
    """The one line that refuses ``words``."""
    with pytest.raises(ConfigError) as refused:
        run_from(words)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def suggestion(line: str) -> str | None:
    found = re.search(r"did you mean ([^ ?]+)", line)
    return found[1] if found else None


# --- F41: names


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


def at(node: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


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


# --- F42: types and ranges


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, inner in pairs:
        if str(name).startswith("_"):
            continue
        if isinstance(inner, dict | list) and inner:
            yield from leaves(inner, (*path, str(name)))
        else:
            yield (*path, str(name)), inner


def wrong_values(value: Any) -> tuple[Any, ...]:
    """What no field with such a value takes."""
    match value:
        case bool():
            return "abc", 2.5
        case int() | float():
            return "abc", True, float("nan"), float("inf"), -1, []
        case _:
            return ({"a": object},)


@pytest.mark.slow
@pytest.mark.fault("F42")
def test_every_number_and_switch_refuses_what_it_cannot_be_by_its_key_and_with_what_it_got() -> None:
    tried, seen = 0, set()
    for choice, whole in roots().items():
        group = choice.partition("=")[0]
        root = {group: whole[group]}
        for path, value in leaves(root):
            holder, name = at(root, path[:-1]), path[-1]
            field = (str(holder["_target_"]) if "_target_" in holder else path[-2], name)
            if field in seen or not isinstance(value, bool | int | float):
                continue
            seen.add(field)
            for wrong in wrong_values(value):
                changed = copy.deepcopy(root)
                of = at(changed, path[:-1])
                of[int(name) if isinstance(of, list) else name] = wrong
                with pytest.raises(ConfigError) as refused:
                    build(changed)
                    pytest.fail(f"{choice} {'.'.join(path)}={wrong} was accepted")
                line = str(refused.value)
                tried += 1
                # a rule of several fields names them together behind the place of their class
                key, place = ".".join(path), ".".join(path[:-1])
                assert key in line or (place in line and name in line), (key, wrong, line)
                assert "\n" not in line
                assert re.search(r"expected|must|at least|above|between|give|set |does not", line), line
    assert tried > 300


@pytest.mark.fault("F42")
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("optim.lr=nan", "optim.lr: got nan, expected a finite number"),
        ("optim.lr=abc", "optim.lr: got 'abc', expected a number"),
        ("batch_rows=true", "batch_rows: got true, expected a number"),
        ("batch_rows=0", "batch_rows: got 0, expected a number greater than 0"),
        ("trainer.precision=fp8", "trainer.precision: got 'fp8', expected 'auto', 'fp32', 'bf16' or 'fp64'"),
        (
            "model.layers.0.mixer.head_dim=7",
            "model.layers.0.mixer.head_dim must be even, since RoPE turns pairs, got 7",
        ),
        ("model.d_model=0", "model.d_model must be at least 1, got 0"),
        ("data.near_duplicate=2", "data.near_duplicate=2.0 must be above 0 and at most 1"),
    ],
)
def test_a_wrong_value_is_answered_with_path_value_and_what_is_allowed(word: str, line: str) -> None:
    assert answer(word).startswith(line)


@pytest.mark.fault("F42")
def test_a_value_in_a_list_is_named_by_its_number() -> None:
    assert "objective.noises.4.rate must be between 0 and 1" in answer(
        "objective=ul2", "objective.noises.4.rate=3"
    )
    assert "objective.noises.4.mean: got 'a'" in answer("objective=ul2", "objective.noises.4.mean=a")


# --- F43: objective x architecture: what is refused, and nothing else; tests/test_matrix.py trains all others

PACKED = tuple(name for name, objective in OBJECTIVES.items() if objective.rows == "packed")
REFUSED = {(name, "moe_expert_choice") for name in PACKED}  # choosing experts compare whole rows


@pytest.mark.fault("F43")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_cell_of_the_matrix_is_refused_with_reason_and_alternative_or_is_trained(
    objective: str, arch: str
) -> None:
    one = OBJECTIVES[objective]
    refused = None
    try:
        one.check(ARCHS[arch], seq_len=SEQ_LEN, one_document=one.rows == "document")
    except ValueError as error:
        refused = str(error)
    assert (refused is not None) == ((objective, arch) in REFUSED), refused
    if refused:
        assert re.match(r"(\w+ needs a \w+ \w+, but )?model\.layers\.0 has MoE, which can", refused)
        assert re.search(r"choose another layer", refused)


@pytest.mark.fault("F43")
@pytest.mark.parametrize("model", GROUPS["model"])
def test_every_objective_and_model_of_the_config_folder_make_a_run(model: str) -> None:
    tokenizer = default()["tokenizer"] | {"n_sentinels": 256}
    for objective in GROUPS["objective"]:
        parts = {"objective": roots()[f"objective={objective}"]["objective"], "tokenizer": tokenizer}
        made = instantiate(roots()[f"model={model}"] | parts)
        assert type(made.objective).__name__ == parts["objective"]["_target_"].rpartition(".")[2]


# --- F44: parts that do not fit one another

MISFITS = [
    (["model.layers.0.mixer.head_dim=50"], r"d_model=\d+.* no multiple of head_dim=50; set model\.d_model or head_dim"),
    (["model.layers.0.mixer.kv_group=7"], r"makes \d+ heads of \d+, not a multiple of kv_group=7"),
    (["model=ssm", "model.layers.0.mixer.head_dim=50"], r"d_model=\d+ times expand=2.* no multiple of head_dim=50"),
    (["objective=denoising", "tokenizer.n_sentinels=9", "model.cross.head_dim=50"], r"model\.cross: .*head_dim=50"),
    (["objective=denoising", "tokenizer.n_sentinels=0"], r"needs \d+ sentinels and the tokenizer has 0: set tokenizer"),
    (["objective=ul2", "seq_len=1024", "tokenizer.n_sentinels=32"], r"needs 2\d\d sentinels .*smaller seq_len"),
    (["objective=mlm", "seq_len=2"], r"seq_len=2 leaves no token to score at 15%: set it to at least 7"),
    (["objective=contrastive", "seq_len=1"], r"seq_len=1 leaves a view too few tokens: give at least"),
    (["objective=contrastive", "objective.matryoshka=[4096]"], r"matryoshka=\[4096\] must be narrower"),
    (["objective=contrastive", "objective.pooling=first", "objective.visibility=causal"], r"pooling=first .*choose"),
    (["objective=contrastive", "objective.pairs=dropout"], r"model\.dropout=0: set model\.dropout=0\.1, or"),
    (["tokenizer.vocab_size=200"], r"tokenizer\.vocab_size=200 leaves no piece: .*set it above \d+"),
    (["tokenizer=bytes", "tokenizer.n_sentinels=-1"], r"tokenizer\.n_sentinels=-1 must not be negative"),
    (["size=n", "size.n=3e5", "size.d_model=64"], r"give size\.d_model or size\.n, one of them"),
    (["model=moe", "model.layers.0.mlp.top_k=99"], r"top_k=99 is more than n_experts=\d+: lower it or add experts"),
    (["model=moe", "model.layers.0.mlp.choice=expert"], r"choice=expert .*set renormalise=false"),
]  # fmt: skip


@pytest.mark.fault("F44")
@pytest.mark.parametrize(("words", "line"), MISFITS, ids=[" ".join(words) for words, _ in MISFITS])
def test_parts_that_do_not_fit_are_refused_before_text_is_prepared(words: list[str], line: str) -> None:
    assert re.search(line, answer(*words))


@pytest.mark.fault("F44")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trainer__devices": 3}, r"batch_rows=4 cannot be shared out to 3 ranks: give a multiple of it"),
        ({"micro_rows": 3}, r"micro_rows=3 does not divide the 4 rows .*micro_rows=[24] does"),
        ({"objective": "contrastive", "micro_rows": 2}, r"micro_rows=2 would compare only so many rows"),
    ],
)
def test_a_batch_that_ranks_cannot_share_is_refused(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        split_batch(tiny(tmp_path, **changes))
