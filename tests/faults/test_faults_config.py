"""Faults F42 to F44: values and parts that cannot be are refused before anything runs, in one line with the way out."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from answers import refused as answer
from chosen import GROUPS, at, default, roots
from llmtrain.compose import build, instantiate
from llmtrain.errors import ConfigError
from llmtrain.pretrain import split_batch
from runs import tiny
from tests.matrix import OBJECTIVES, SEQ_LEN
from tests.tiny import ARCHS

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
