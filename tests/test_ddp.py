"""Two ranks are one: the same losses and weights as a single process on the same rows (contract 25).

One pair of processes trains each of ``CASES``, among them every objective on every architecture; what is sharded too is
in test_sharded.py.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmtrain.checkpoint import find, load
from llmtrain.pretrain import train
from ranks import on_ranks
from runs import PAIRS, REPO, metrics, overrides, pair, tiny, without_figures, write_text

STEPS = 20
COMMON: dict[str, Any] = {
    "eval__samples": 0,
    "steps": STEPS, "seq_len": 64, "eval__every": 10, "checkpoint__every": 10, "trainer__precision": "fp64",
    "trainer__accelerator": "cpu",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {  # what the worker trains
    "muon-accumulated": {"optim": "muon", "optim__ema": 0.9, "micro_rows": 1},
    "adamw-fp32": {"trainer__precision": "fp32"},
    **{experiment: pair(experiment) | {"eval__every": 3, "checkpoint__every": 3} for experiment in PAIRS},
}
BY_COMMAND = {"optim": "adamw", "optim__ema": 0.9}  # trained by train.py itself
DDP = {"trainer": "ddp"}

pytestmark = pytest.mark.slow


def launch(*words: str) -> str:
    """What two ranks said; they must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said, _ = process.communicate(timeout=200)
        finally:
            process.terminate()  # not kill, which its ranks would survive
    assert process.returncode == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on one rank under its name, and on two under two-NAME."""
    folder = tmp_path_factory.mktemp("ddp")
    write_text(folder)
    with without_figures():
        for name, changes in (CASES | {"adamw": BY_COMMAND}).items():
            train(tiny(folder, name=name, **(COMMON | changes)))
        on_ranks(2, lambda: work(folder))
    return folder


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    """Of the command under torchrun."""
    return launch("train.py", *overrides(home, name="two-adamw", **(DDP | COMMON | BY_COMMAND)))


def assert_close(one: Path, two: Path, tolerance: float, *, weights: bool = True) -> None:
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    if not weights:
        return
    paths = find(one), find(two)
    assert None not in paths
    states = [load(path) for path in paths if path is not None]
    for group in ("model", "optimizer", "averages"):
        for name, tensor in states[0].tensors[group].items():
            torch.testing.assert_close(states[1].tensors[group][name], tensor, rtol=tolerance, atol=tolerance)


def test_two_ranks_are_one_through_the_command_itself(home: Path, said: str) -> None:
    assert_close(home / "runs" / "adamw", home / "runs" / "two-adamw", 1e-10)
    assert said.count(f"step {STEPS}/{STEPS}  loss") == 1  # the first rank alone speaks
    assert "Traceback" not in said and "Warning" not in said


@pytest.mark.parametrize("name", ["muon-accumulated", *PAIRS])
def test_two_ranks_are_one_in_every_loss_weight_and_moment(home: Path, name: str) -> None:
    assert_close(home / "runs" / name, home / "runs" / f"two-{name}", 1e-10)


def test_two_ranks_are_one_in_single_precision_up_to_rounding(home: Path) -> None:
    for a, b in zip(
        metrics(home / "runs" / "adamw-fp32"), metrics(home / "runs" / "two-adamw-fp32"), strict=True
    ):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-5)


def test_what_two_ranks_saved_goes_on_with_one(home: Path, said: str) -> None:
    elastic = home / "runs" / "elastic"
    shutil.copytree(home / "runs" / "two-adamw", elastic)
    (elastic / "record.json").unlink()
    shutil.rmtree(elastic / "checkpoints" / f"step-{STEPS:08d}")
    record = train(tiny(home, name="elastic", **(COMMON | BY_COMMAND)))
    assert record is not None and record.steps == STEPS
    assert_close(home / "runs" / "adamw", elastic, 1e-10)


def work(folder: Path) -> None:
    for name, changes in CASES.items():
        run = tiny(folder, name=f"two-{name}", **(DDP | COMMON | changes))
        first = int(os.environ["RANK"]) == 0
        assert (train(run) is not None) == first
        dist.barrier()  # the record is there
        assert (train(run) is not None) == first  # finished: no rank waits for another
