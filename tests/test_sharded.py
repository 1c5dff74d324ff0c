"""Sharded runs are one process: the same losses and weights under FSDP, tensor parallelism and both (contract 25).

A pair of processes trains every case of ``PAIR``, and then a group of four those of ``FOUR``.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmtrain.checkpoint import find, load
from llmtrain.pretrain import train
from ranks import on_ranks
from runs import metrics, pair, tiny, weights, write_text

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = {
    "steps": 4, "eval__every": 2, "checkpoint__every": 2, "checkpoint__keep_last": 9, "optim__ema": 0.9,
    "trainer__precision": "fp64", "trainer__accelerator": "cpu",
}  # fmt: skip
FSDP, TP = {"trainer": "fsdp"}, {"trainer": "tp"}
GQA = {"model__layers__0__mixer__kv_group": 2, "model__d_model": 32}
# what one process trains, by name; and how two, or four, train it
TASKS: dict[str, dict[str, Any]] = {
    name: pair(name)
    for name in ("clm_moe", "clm_ssm", "clm_hybrid", "mlm_dense", "mlm_moe", "denoising_dense", "denoising_moe")
} | {
    "clm_dense": pair("clm_dense") | GQA,
    "contrastive_moe": pair("contrastive_moe"),
    "biased": pair("clm_moe") | {
        "model__layers__0__mlp__n_shared": 1, "model__layers__0__mlp__bias_rate": 0.01, "optim": "adamw"
    },
}  # fmt: skip
ACCUMULATED = {"micro_rows": 1}
RECOMPUTED = {"trainer__activation_checkpointing": "block"}
PAIR: dict[str, tuple[str, dict[str, Any]]] = {
    "fsdp-clm_dense": ("clm_dense", FSDP | ACCUMULATED),
    "fsdp-clm_moe": ("clm_moe", FSDP),
    "fsdp-clm_ssm": ("clm_ssm", FSDP),
    "fsdp-clm_hybrid": ("clm_hybrid", FSDP | RECOMPUTED),
    "fsdp-mlm_moe": ("mlm_moe", FSDP),
    "fsdp-denoising_dense": ("denoising_dense", FSDP | RECOMPUTED),
    "fsdp-contrastive_moe": ("contrastive_moe", FSDP),
    "tp-clm_dense": ("clm_dense", TP | ACCUMULATED),
    "tp-biased": ("biased", TP),
    "tp-mlm_dense": ("mlm_dense", TP | RECOMPUTED),
    "tp-denoising_moe": ("denoising_moe", TP),
    "tp-contrastive_moe": ("contrastive_moe", TP),
}
FOUR: dict[str, tuple[str, dict[str, Any]]] = {
    "grid-clm_dense": ("clm_dense", TP | {"trainer__devices": 4}),
    "grid-denoising_moe": ("denoising_moe", TP | {"trainer__devices": 4}),
}
# what goes on from step 2 of another run: name -> (whose, with which ranks)
PAIR_GOES_ON: dict[str, tuple[str, dict[str, Any]]] = {
    "again": ("fsdp-clm_hybrid", FSDP | RECOMPUTED),
    "from-1-to-fsdp": ("clm_dense", FSDP),
    "from-1-to-tp": ("clm_dense", TP),
}
FOUR_GO_ON = {
    "from-fsdp-to-4": ("fsdp-clm_dense", FSDP | {"trainer__devices": 4}),
    "from-tp-to-grid": ("tp-clm_dense", TP | {"trainer__devices": 4}),
}
ONE_GOES_ON: dict[str, tuple[str, dict[str, Any]]] = {
    "from-fsdp-to-1": ("fsdp-clm_dense", {}),
    "from-tp-to-1": ("tp-clm_dense", {}),
    "from-grid-to-1": ("grid-clm_dense", {}),
}
GOING_ON = PAIR_GOES_ON | FOUR_GO_ON | ONE_GOES_ON


def task_of(name: str) -> str:
    return name if name in TASKS else (PAIR | FOUR)[name][0]


def go_on(folder: Path, name: str, whose: str, changes: dict[str, Any]) -> None:
    """The run ``whose`` once more from its step 2, under another name."""
    here = folder / "runs" / name
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.copytree(folder / "runs" / whose, here)
        (here / "record.json").unlink()
        shutil.rmtree(here / "checkpoints" / "step-00000004")
    if dist.is_initialized():
        dist.barrier()
    train(tiny(folder, name=name, **(TASKS[task_of(whose)] | COMMON | changes)))


def work(
    folder: Path,
    cases: dict[str, tuple[str, dict[str, Any]]],
    going_on: dict[str, tuple[str, dict[str, Any]]],
) -> None:
    for name, (task, changes) in cases.items():
        train(tiny(folder, name=name, **(changes | TASKS[task] | COMMON)))
    for name, (whose, changes) in going_on.items():
        go_on(folder, name, whose, changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_text(folder)
    for name, changes in TASKS.items():
        train(tiny(folder, name=name, **(changes | COMMON)))
    on_ranks(2, lambda: work(folder, PAIR, PAIR_GOES_ON))
    on_ranks(4, lambda: work(folder, FOUR, FOUR_GO_ON))
    for name, (whose, changes) in ONE_GOES_ON.items():
        go_on(folder, name, whose, changes)
    return folder


def assert_one(home: Path, name: str, task: str) -> None:
    """Of a run: losses, norms, loads, scores, and at the end weights, moments and averages are those of one process."""
    one, other = home / "runs" / task, home / "runs" / name
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=1e-10)
    paths = find(one), find(other)
    expected, found = (load(path).tensors for path in paths if path is not None)
    for group in ("model", "optimizer", "averages"):
        assert expected[group].keys() == found[group].keys()
        for key, tensor in expected[group].items():
            torch.testing.assert_close(found[group][key], tensor, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PAIR | FOUR)
def test_ranks_that_each_hold_a_part_are_one(home: Path, name: str) -> None:
    assert_one(home, name, task_of(name))


@pytest.mark.parametrize("name", GOING_ON)
def test_what_some_ranks_saved_goes_on_with_any_others(home: Path, name: str) -> None:
    assert_one(home, name, task_of(GOING_ON[name][0]))


def test_the_same_ranks_go_on_bit_for_bit(home: Path) -> None:
    whose = PAIR_GOES_ON["again"][0]
    runs = [home / "runs" / name for name in (whose, "again")]
    assert metrics(runs[0]) == metrics(runs[1])
    assert weights(runs[0], 4) == weights(runs[1], 4)


def test_each_rank_saves_its_part_alone(home: Path) -> None:
    whole = weights(home / "runs" / "clm_hybrid", 4)
    parts = weights(home / "runs" / "fsdp-clm_hybrid", 4)
    for group in ("model", "optimizer"):
        sizes = [len(data) for name, data in parts.items() if name.startswith(group)]
        assert len(sizes) == 2
        assert sum(sizes) == pytest.approx(
            len(whole[f"{group}.safetensors"]), rel=0.2
        )  # headers name each part
        assert max(sizes) < 0.7 * sum(sizes)
