"""A loss or a gradient that is not finite never reaches what a run is continued from."""

import contextlib
import dataclasses
import math
import os
import re
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain import cli, faults
from llmtrain.callbacks.anomalies import AnomalyLog
from llmtrain.callbacks.loggers.jsonl import read
from llmtrain.checkpoint import find, load
from llmtrain.errors import NumbersError
from llmtrain.objectives.causal import CausalLM
from llmtrain.pretrain import train
from poison import BAD, ROWS, SEQ_LEN, STEPS, anomalies, assert_all_checkpoints_finite, done, poisoned
from processes import forked
from runs import metrics, overrides, tiny, write_text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


# ---- the default


@pytest.mark.fault("F17", "F20")
@pytest.mark.parametrize("times", ["nan", "inf", "-inf"])
def test_a_run_ends_before_a_number_that_is_not_finite_goes_anywhere(home: Path, times: str) -> None:
    run = poisoned(home, times=times, name=f"stop-{times}", checkpoint__every=1)
    with pytest.raises(
        NumbersError, match=rf"step {BAD}: loss -?(nan|inf).* rows 24-27, first in loss; "
    ) as error:
        train(run)
    assert error.value.exit_code == 4
    assert "guard.on_nonfinite=skip" in str(error.value) and "\n" not in str(error.value)
    (row,) = anomalies(run)
    assert row == row | {
        "step": BAD, "kind": "nonfinite", "action": "stop", "ranks": [0], "rows": [[24, 28]], "score": None,
        "module": "loss", "parameter": None,
    }  # fmt: skip
    assert not math.isfinite(float(row["loss"]) + float(row["grad_norm"]))
    assert find(run.folder).name == f"step-{BAD - 1:08d}"  # type: ignore[union-attr]
    assert_all_checkpoints_finite(run)
    assert not (run.folder / "record.json").exists()


@pytest.mark.fault("F17")
def test_the_command_exits_with_4_and_tells_where_the_numbers_come_from(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that goes wrong by itself: the forward pass is innocent, and the parameter is named."""
    monkeypatch.setenv(faults.VARIABLE, "nan@grad=6")
    words = overrides(home, name="command", seq_len=SEQ_LEN, eval__samples=0)
    assert cli.main(words) == 4
    said = capsys.readouterr().err
    assert re.search(
        r"^error: step 7: loss \d\.\d+, gradient norm nan on rank 0, rows 24-27, ", said, re.MULTILINE
    )
    assert (
        "first in the gradient of model.embed.weight; nothing was updated" in said and "Traceback" not in said
    )
    run = tiny(home, name="command", seq_len=SEQ_LEN, eval__samples=0)
    assert [row["action"] for row in anomalies(run)] == ["stop"]
    assert cli.main(words) == 0  # the fault strikes once, so this start gets by
    assert anomalies(run) == []
    assert metrics(run.folder)[-2]["step"] == STEPS
    faults.arm("")


@pytest.mark.fault("F17")
def test_the_first_module_is_the_innermost_whose_output_is_not_finite(home: Path) -> None:
    from llmtrain.callbacks.culprit import first_module
    from llmtrain.objectives.base import Task
    from tiny import FAMILIES, batch_of, model_of

    objective = CausalLM()
    for cfg in FAMILIES.values():
        task = Task(model_of(objective, cfg), objective)
        batch = batch_of(objective)
        assert first_module(task, [batch], contextlib.nullcontext()) is None
        names = [name for name, _ in task.named_modules() if name.endswith("mixer")]
        part = task.get_submodule(names[-1])
        bad = part.register_forward_hook(lambda module, args, output: output * math.nan)
        assert first_module(task, [batch, batch], contextlib.nullcontext()) == names[-1]
        bad.remove()
        assert not any(module._forward_hooks for module in task.modules())


# ---- skipping


@pytest.mark.fault("F17")
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_skipped_step_moves_no_bit_and_takes_its_rows_with_it(home: Path, optim: str) -> None:
    moe = {"model": "moe", "model__layers__0__mlp__n_experts": 4, "model__layers__0__mlp__bias_rate": 0.01}
    changes = {"guard__on_nonfinite": "skip", "checkpoint__every": 1, "optim": optim, "steps": BAD + 1} | moe
    run = poisoned(home, name=f"skip-{optim}", **changes)
    record = done(run)
    before, after = (
        load(folder / f"step-{BAD - i:08d}") for folder in [run.folder / "checkpoints"] for i in (1, 0)
    )
    for group in ("model", "optimizer"):
        for name, tensor in before.tensors[group].items():
            assert torch.equal(tensor, after.tensors[group][name]), name
    assert (record.steps, record.skipped_steps) == (BAD + 1, 1)
    assert record.raw_tokens == record.positions == BAD * ROWS * SEQ_LEN
    assert load(find(run.folder)).values["passed"] == [[4 * BAD - 4, 4 * BAD]]  # type: ignore[arg-type]
    rows = [row for row in metrics(run.folder) if "loss" in row]
    assert [row["updated"] for row in rows] == [step != BAD for step in range(1, BAD + 2)]
    assert (rows[BAD - 1]["loss"], rows[BAD - 1]["grad_norm"]) == (None, None)
    factors = [run.schedule.factor(step, run.steps) for step in range(BAD + 1)]  # type: ignore[arg-type]
    assert [row["lr"] for row in rows] == [run.optim.lr * factor for factor in factors]
    assert [(row["action"], row["step"]) for row in anomalies(run)] == [("skip", BAD)]
    assert_all_checkpoints_finite(run)


@pytest.mark.fault("F17")
def test_too_many_skips_in_a_row_end_the_run(home: Path) -> None:
    bad = tuple(range(20, 40))  # of the steps from 6 on
    run = poisoned(home, bad, name="skips", guard__on_nonfinite="skip", guard__max_skips=3)
    with pytest.raises(NumbersError, match=r"step 9: .* 3 steps before it were skipped \(guard\.max_skips\)"):
        train(run)
    assert [row["action"] for row in anomalies(run)] == ["skip", "skip", "skip", "stop"]
    assert_all_checkpoints_finite(run)


# ---- ranks


def on_two_ranks(work: Callable[[], object]) -> None:
    """Do ``work`` in two processes that train together; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(n: int) -> int:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(n), LOCAL_RANK=str(n)
        )
        work()
        return 0

    with forked(partial(rank, 0)) as first, forked(partial(rank, 1)) as second:
        ends = [child.ended() for child in (first, second)]
    assert [code for code, _, _ in ends] == [0, 0], ends[0][2] + ends[1][2]


@pytest.mark.slow
@pytest.mark.fault("F13", "F17", "F19")
def test_two_ranks_agree_and_are_one(home: Path) -> None:
    double: dict[str, Any] = {"trainer__precision": "fp64", "trainer__accelerator": "cpu"}
    back = double | {"guard__on_nonfinite": "rollback"}
    skip = double | {"guard__on_nonfinite": "skip", "checkpoint__every": 1}
    two = {"trainer": "ddp"}

    def work() -> None:
        train(poisoned(home, name="two-back", **back, **two))
        train(poisoned(home, name="sharded", **back, trainer="fsdp"))
        train(poisoned(home, name="split", **back, trainer="tp"))
        faults.arm("nan@grad=6,rank=1; nan@step=8,rank=0")  # one of one rank's gradients, then its loss
        train(poisoned(home, (), name="two-skip", **skip, **two))

    on_two_ranks(work)
    one = poisoned(home, name="one-back", **back)
    done(one)
    elastic = dataclasses.replace(
        one, name="elastic"
    )  # what two ranks saved after the rollback, continued by one
    shutil.copytree(home / "runs" / "two-back", elastic.folder)
    (elastic.folder / "record.json").unlink()
    shutil.rmtree(elastic.folder / "checkpoints" / f"step-{STEPS:08d}")
    done(elastic)
    expected = load(find(one.folder))  # type: ignore[arg-type]
    of_rank_1 = {"ranks": [1], "rows": [[26, 28]]}
    blamed = {"two-back": of_rank_1, "elastic": of_rank_1, "sharded": of_rank_1, "split": {"ranks": [0, 1]}}
    for name, blame in blamed.items():
        run = dataclasses.replace(one, name=name)
        assert anomalies(run) == [anomalies(one)[0] | blame]
        assert metrics(run.folder) == [
            pytest.approx(row, rel=1e-10, nan_ok=True) for row in metrics(one.folder)
        ]
        found = load(find(run.folder))  # type: ignore[arg-type]
        assert found.values["passed"] == [[24, 28]]
        for group in ("model", "optimizer"):
            for key, tensor in expected.tensors[group].items():
                torch.testing.assert_close(found.tensors[group][key], tensor, rtol=1e-10, atol=1e-10)

    run = dataclasses.replace(one, name="two-skip")
    assert [(row["step"], row["action"], row["ranks"], row["rows"]) for row in anomalies(run)] == [
        (7, "skip", [1], [[26, 28]]),
        (9, "skip", [0], [[32, 34]]),
    ]
    for step in (7, 9):
        before, after = (load(run.folder / "checkpoints" / f"step-{n:08d}").tensors for n in (step - 1, step))
        for group in ("model", "optimizer"):
            assert all(torch.equal(tensor, after[group][key]) for key, tensor in before[group].items())
    assert_all_checkpoints_finite(run)


# ---- the file


@pytest.mark.fault("F17", "F19")
def test_anomalies_are_kept_as_long_as_they_are_part_of_the_state(tmp_path: Path) -> None:
    log = AnomalyLog(tmp_path, from_step=0)
    for step, action in [(4, "skip"), (8, "skip")]:
        log.write({"step": step, "action": action})
    log.go_back(5)  # the skip of step 8 comes again
    log.write({"step": 9, "action": "rollback", "back_to": 5})
    log.write({"step": 7, "action": "log", "loss": math.inf})

    def kept(from_step: int) -> list[tuple[int, str]]:
        folder = tmp_path / str(from_step)
        folder.mkdir()
        shutil.copy(log.path, folder)
        AnomalyLog(folder, from_step=from_step)
        return [(row["step"], row["action"]) for row in read(folder / log.path.name)]

    assert kept(5) == [(4, "skip")]
    assert kept(6) == [(4, "skip"), (9, "rollback")]  # saved after the rollback, which is in it
    assert kept(7) == [(4, "skip"), (9, "rollback"), (7, "log")]
    assert read(log.path)[-1]["loss"] == "inf"
