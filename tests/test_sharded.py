"""Sharded runs are one process: the same losses and weights under FSDP, tensor parallelism and both (contract 25).

A pair of processes trains every case of ``PAIR``, and then a group of four those of ``FOUR``.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import llmtrain
from llmtrain import faults
from llmtrain.accounting import meta_model
from llmtrain.checkpoint import find, load
from llmtrain.compose import run_from
from llmtrain.errors import ConfigError
from llmtrain.nn.init import draws
from llmtrain.nn.roles import roles
from llmtrain.objectives.base import Task
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.denoising import Denoising
from llmtrain.place import cut, local, place_of
from llmtrain.pretrain import train
from llmtrain.ranks import DATA, TENSOR
from llmtrain.sharding import shard
from ranks import on_ranks
from runs import metrics, overrides, pair, tiny, weights, without_figures, write_text
from tests.tiny import MOE, VOCAB, model_of

Cases = dict[str, tuple[str, dict[str, Any]]]  # name -> (of which task or run, with which changes)

COMMON: dict[str, Any] = {
    "eval__samples": 0,
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
TASKS["struck"] = pair("clm_moe") | {"guard__on_nonfinite": "rollback"}
STRUCK = {"struck": "nan@grad=3", "fsdp-struck": "nan@grad=3,rank=1", "tp-struck": "nan@grad=3,rank=1"}
ACCUMULATED = {"micro_rows": 1}
RECOMPUTED = {"trainer__activation_checkpointing": "block"}
PAIR: Cases = {
    "fsdp-clm_dense": ("clm_dense", FSDP | ACCUMULATED),
    "fsdp-clm_moe": ("clm_moe", FSDP),
    "fsdp-clm_ssm": ("clm_ssm", FSDP),
    "fsdp-clm_hybrid": ("clm_hybrid", FSDP | RECOMPUTED),
    "fsdp-mlm_moe": ("mlm_moe", FSDP),
    "fsdp-denoising_dense": ("denoising_dense", FSDP | RECOMPUTED),
    "fsdp-contrastive_moe": ("contrastive_moe", FSDP),
    "fsdp-struck": ("struck", FSDP),
    "tp-struck": ("struck", TP),
    "tp-clm_dense": ("clm_dense", TP | ACCUMULATED),
    "tp-biased": ("biased", TP),
    "tp-mlm_dense": ("mlm_dense", TP | RECOMPUTED),
    "tp-denoising_moe": ("denoising_moe", TP),
    "tp-contrastive_moe": ("contrastive_moe", TP),
}
FOUR: Cases = {
    "grid-clm_dense": ("clm_dense", TP | {"trainer__devices": 4}),
    "grid-denoising_moe": ("denoising_moe", TP | {"trainer__devices": 4}),
}
# what goes on from step 2 of another run: name -> (whose, with which ranks)
PAIR_GOES_ON: Cases = {
    "again": ("fsdp-clm_hybrid", FSDP | RECOMPUTED),
    "from-1-to-fsdp": ("clm_dense", FSDP),
    "from-1-to-tp": ("clm_dense", TP),
}
FOUR_GO_ON: Cases = {
    "from-fsdp-to-4": ("fsdp-clm_dense", FSDP | {"trainer__devices": 4}),
    "from-tp-to-grid": ("tp-clm_dense", TP | {"trainer__devices": 4}),
}
ONE_GOES_ON: Cases = {
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


def starts_from_the_same_bits(*shape: int) -> None:
    """A model drawn part by part on a grid of ranks is the one that one process draws, and what is tied stays tied."""
    grid = init_device_mesh("cpu", shape, mesh_dim_names=(DATA, TENSOR))
    for objective in (CausalLM(), Denoising(), Contrastive(projection=16, learn_temperature=True, aux="mlm")):
        whole = model_of(objective, MOE["moe_shared"])
        task = Task(meta_model(MOE["moe_shared"], objective, VOCAB.size), objective)
        shard(
            task,
            grid,
            device=torch.device("cpu"),
            dtype=torch.float32,
            values=lambda model: draws(model, n_layers=2, seed=0),
        )
        role = roles(whole)
        own = dict(task.model.named_parameters())
        assert own.keys() == dict(whole.named_parameters()).keys()
        for name, parameter in whole.named_parameters():
            mine, place = local(own[name]), place_of(own[name], role[name].splits)
            assert mine.equal(cut(parameter.detach(), place)), name
        n_own = sum(local(p).numel() for p in own.values())
        assert n_own < 0.8 * sum(p.numel() for p in whole.parameters())


def reductions(folder: Path, trainer: str, micro_rows: int | None) -> dict[str, int]:
    """How often three steps reduced gradients."""
    changes = {
        "steps": 3,
        "seq_len": 64,
        "trainer": trainer,
        "micro_rows": micro_rows or "null",
        "eval__rows": 4,
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(tiny(folder, name=f"{trainer}-{micro_rows}", trainer__accelerator="cpu", **changes))
    keys = ("c10d::allreduce_", "c10d::_reduce_scatter_base_")
    counts = {event.key: event.count for event in profile.key_averages()}
    return {key: counts.get(key, 0) for key in keys}


def accumulates_without_needless_messages(folder: Path) -> None:
    for trainer in ("ddp", "fsdp"):
        assert reductions(folder, trainer, None) == reductions(folder, trainer, 1)
    assert (
        reductions(folder, "fsdp", 2)["c10d::_reduce_scatter_base_"] == 3 * 2
    )  # of the block, and of the rest


def pair_works(folder: Path) -> None:
    trained(folder, PAIR, PAIR_GOES_ON)
    accumulates_without_needless_messages(folder)
    starts_from_the_same_bits(2, 1)
    starts_from_the_same_bits(1, 2)


def four_work(folder: Path) -> None:
    trained(folder, FOUR, FOUR_GO_ON)
    starts_from_the_same_bits(2, 2)


def trained(folder: Path, cases: Cases, going_on: Cases) -> None:
    for name, (task, changes) in cases.items():
        faults.arm(STRUCK.get(name, ""))
        train(tiny(folder, name=name, **(changes | TASKS[task] | COMMON)))
    faults.arm("")
    for name, (whose, changes) in going_on.items():
        go_on(folder, name, whose, changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sharded")
    write_text(folder)
    with without_figures():
        trained(folder, {name: (name, {}) for name in TASKS}, {})
        on_ranks(2, lambda: pair_works(folder))
        on_ranks(4, lambda: four_work(folder))
        for name, (whose, changes) in ONE_GOES_ON.items():
            go_on(folder, name, whose, changes)
    yield folder


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


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAIR | FOUR if name not in STRUCK])
def test_ranks_that_each_hold_a_part_are_one(home: Path, name: str) -> None:
    assert_one(home, name, task_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp-struck", "tp-struck"])
def test_all_ranks_go_back_where_one_of_them_has_a_gradient_that_is_not_finite(home: Path, name: str) -> None:
    rows = [json.loads(line) for line in (home / "runs" / name / "anomalies.jsonl").read_text().splitlines()]
    assert [(row["step"], row["action"], row["back_to"]) for row in rows] == [(4, "rollback", 2)]
    assert_one(home, name, "struck")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp-clm_dense", "tp-clm_dense", "grid-clm_dense"])
def test_a_sharded_run_is_loaded_whole(home: Path, name: str) -> None:
    one, other = (llmtrain.load(home / "runs" / run) for run in ("clm_dense", name))
    for key, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[key], tensor, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOING_ON)
def test_what_some_ranks_saved_goes_on_with_any_others(home: Path, name: str) -> None:
    assert_one(home, name, task_of(GOING_ON[name][0]))


@pytest.mark.slow
def test_the_same_ranks_go_on_bit_for_bit(home: Path) -> None:
    whose = PAIR_GOES_ON["again"][0]
    runs = [home / "runs" / name for name in (whose, "again")]
    assert metrics(runs[0]) == metrics(runs[1])
    assert weights(runs[0], 4) == weights(runs[1], 4)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"experiment": "clm_ssm", **TP}, "model.layers.0 has SSM, which has no plan .* set trainer=fsdp"),
        ({**TP, "trainer__tensor": 1}, "splits no matrix: set trainer.tensor=2, or trainer.strategy=fsdp"),
        ({**FSDP, "trainer__tensor": 2}, "tensor=2 is for strategy=tp"),
        ({**TP, "trainer__devices": 3}, "tensor=2 does not divide the 3 ranks"),
        ({**FSDP, "trainer__compile": True}, "compile=true with strategy=fsdp is not supported"),
    ],
)
def test_what_cannot_be_sharded_is_refused_with_the_way_out(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        run_from(overrides(tmp_path, **changes))
