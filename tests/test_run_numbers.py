"""A run in other precisions or compiled is the run, and no number of it that is not finite is kept."""

import math
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llmtrain
from llmtrain.checkpoint import find, load, save
from llmtrain.errors import NumbersError
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from llmtrain.trainer import Trainer
from runs import REPO, metrics, overrides, write_text
from whole import STEPS, finished, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> RunRecord:
    return finished(home)


def test_bf16_is_chosen_on_a_cpu_with_instructions_for_it_alone() -> None:
    """oneDNN says yes wherever there is AVX512, and is then five times slower than in float32."""
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        pytest.skip("reads the flags of an x86 CPU from /proc/cpuinfo")
    flags = set(next(line for line in info.read_text().splitlines() if line.startswith("flags")).split())
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    assert Trainer(accelerator="cpu").chosen_precision() == expected


def test_bf16_runs_where_hardware_has_none(home: Path) -> None:
    record = train(tiny(home, name="bf16", trainer__precision="bf16", steps=2, seq_len=64))
    assert record is not None and record.precision == "bf16"
    assert all(
        torch.float32 == t.dtype
        for t in load(find(home / "runs" / "bf16")).tensors["model"].values()  # type: ignore[arg-type]
    )
    first = metrics(home / "runs" / "bf16")[0]["loss"]
    assert first == pytest.approx(math.log(272), rel=0.1)  # of a model that knows nothing


@pytest.mark.slow
def test_a_compiled_run_is_the_run(home: Path) -> None:
    changes: dict[str, Any] = {"seq_len": 64, "steps": 6}
    train(tiny(home, name="eager", **changes))
    # a process of its own: the shape checks of tests wrap what would be compiled
    words = overrides(home, name="compiled", trainer__compile=True, **changes)
    done = subprocess.run([sys.executable, "train.py", *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    for a, b in zip(*(metrics(home / "runs" / name) for name in ("eager", "compiled")), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    eager, compiled = (
        llmtrain.load(home / "runs" / name).model.state_dict() for name in ("eager", "compiled")
    )
    assert eager.keys() == compiled.keys()


def test_numbers_that_are_not_finite_end_a_run_before_anything_is_written(
    home: Path, done: RunRecord
) -> None:
    path = find(home / "runs" / "done")
    assert path is not None
    state = load(path)
    next(iter(state.tensors["model"].values()))[0, 0] = math.inf
    poisoned = home / "runs" / "poisoned"
    shutil.copytree(home / "runs" / "done", poisoned)
    shutil.rmtree(poisoned / "checkpoints")
    save(poisoned, STEPS, state)
    with pytest.raises(NumbersError, match=r"lower optim\.lr") as error:
        train(tiny(home, name="heir", init_from="poisoned", init_state="weights"))
    assert "\n" not in str(error.value) and error.value.exit_code == 4
    assert metrics(home / "runs" / "heir") == []
    assert not (home / "runs" / "heir" / "checkpoints").exists()
    assert not (home / "runs" / "heir" / "record.json").exists()


def test_every_checkpoint_of_a_run_that_blew_up_is_finite(home: Path) -> None:
    blown = tiny(
        home, name="blown", optim__lr=1e37, optim__clip="null", checkpoint__every=1, checkpoint__keep_last=9
    )
    with pytest.raises(NumbersError):
        train(blown)
    for path in (blown.folder / "checkpoints").glob("step-*"):
        tensors = load(path).tensors
        assert all(t.isfinite().all() for group in ("model", "optimizer") for t in tensors[group].values())


def test_steps_that_are_not_finite_can_be_passed_over(home: Path, done: RunRecord) -> None:
    record = train(
        tiny(home, name="skips", guard__on_nonfinite="skip", optim__lr=1e37, optim__clip="null", steps=6)
    )
    assert record is not None and record.steps == 6
    updated = [row["updated"] for row in metrics(home / "runs" / "skips") if "loss" in row]
    assert updated[0] and not all(updated)
