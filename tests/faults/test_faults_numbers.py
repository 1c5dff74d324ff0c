"""A loss or a gradient that is not finite, or far too high, never reaches what a run is continued from."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain import cli, faults
from llmtrain.callbacks.anomalies import AnomalyLog
from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.callbacks.loggers.jsonl import read
from llmtrain.checkpoint import find, load, save
from llmtrain.config import config
from llmtrain.errors import NumbersError
from llmtrain.objectives.base import Loss, Objective
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.optim.guard import robust_score
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from llmtrain.run import Run
from processes import forked
from runs import metrics, overrides, stopped, tiny, weights, write_text

STEPS, ROWS, SEQ_LEN = 12, 4, 64
BAD = 7  # the step, counted from 1, whose rows are bad


@config
class Poisoned(CausalLM):
    """Causal language modelling whose loss is so many times too large where one of these rows is in the batch."""

    rows_of_poison: tuple[int, ...] = ()
    times: str = "nan"  # a number; in words, since no NaN equals another

    def evaluations(self) -> tuple[Objective, ...]:
        return (CausalLM(),)

    def example(self, row: Any, vocab: Any, *, seq_len: int, rng: np.random.Generator) -> CausalBatch:
        return super().example(row, vocab, seq_len=seq_len, rng=rng)._replace(key=np.int64(row.number))

    def loss(self, model: Any, batch: CausalBatch) -> Loss:
        out = super().loss(model, batch)
        bad = torch.isin(batch.key, torch.tensor(self.rows_of_poison, dtype=torch.long))
        return out._replace(loss=out.loss * float(self.times)) if bad.any() else out


def poisoned(folder: Path, rows: tuple[int, ...] = (4 * BAD - 2,), times: str = "nan", **changes: Any) -> Run:
    """A tiny run with bad rows, by default one of step ``BAD``."""
    common = {
        "seq_len": SEQ_LEN, "steps": STEPS, "eval__samples": 0, "eval__rows": 8, "optim__ema": 0.9,
        "checkpoint__every": 5, "checkpoint__keep_last": 99,
    }  # fmt: skip
    run = tiny(folder, **(common | changes))
    return dataclasses.replace(run, objective=Poisoned(rows_of_poison=rows, times=times))


def anomalies(run: Run) -> list[dict[str, Any]]:
    path = run.folder / "anomalies.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_all_checkpoints_finite(run: Run) -> None:
    paths = list((run.folder / "checkpoints").iterdir())
    assert paths
    for path in paths:
        tensors = load(path).tensors
        assert all(
            t.isfinite().all()
            for group in ("model", "optimizer", "averages")
            for t in tensors[group].values()
        )


def done(run: Run) -> RunRecord:
    record = train(run)
    assert record is not None
    return record


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def clean(home: Path) -> RunRecord:
    return done(poisoned(home, (), name="clean"))


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


# ---- rolling back


@pytest.fixture(scope="module")
def back(home: Path) -> Run:
    """A run that went back from step 7 to step 5, and on to its end."""
    run = poisoned(home, name="back", guard__on_nonfinite="rollback")
    done(run)
    return run


@pytest.mark.fault("F19")
def test_a_rollback_past_poisoned_rows_ends_near_the_clean_run(
    home: Path, clean: RunRecord, back: Run
) -> None:
    record = RunRecord.read(back.folder / "record.json")
    assert (record.steps, record.skipped_steps, record.rollbacks) == (STEPS, 0, 1)
    assert record.score.value == pytest.approx(clean.score.value, rel=0.02)
    assert (record.raw_tokens, record.flops_model) == (clean.raw_tokens, clean.flops_model)
    assert [row["step"] for row in metrics(back.folder) if "loss" in row] == list(range(1, STEPS + 1))
    (row,) = anomalies(back)
    assert row == row | {"step": BAD, "action": "rollback", "rows": [[24, 28]], "back_to": 5}
    values = load(find(back.folder)).values  # type: ignore[arg-type]
    assert (values["rows"], values["passed"]) == (STEPS * ROWS, [[24, 28]])
    assert_all_checkpoints_finite(back)


@pytest.mark.fault("F19")
def test_after_a_rollback_a_run_is_the_one_that_never_had_those_rows(home: Path, back: Run) -> None:
    """The ranges in a checkpoint are all that it takes: put into a clean run's by hand, they lead to the same bits."""
    never = poisoned(home, (), name="never")
    stopped(never, 5)
    path = find(never.folder)
    assert path is not None
    state = load(path)
    shutil.rmtree(path)
    state.values["passed"] = [[24, 28]]
    save(never.folder, 5, state)
    done(never)
    assert weights(never.folder, STEPS) == weights(back.folder, STEPS)
    assert metrics(never.folder) == metrics(back.folder)


@pytest.mark.fault("F12", "F19")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("lost", [False, True], ids=["saved after it", "saved before it alone"])
def test_a_run_that_is_stopped_after_a_rollback_goes_on_bit_for_bit(
    home: Path, back: Run, workers: int, lost: bool
) -> None:
    name = f"back-{workers}-{lost}"
    run = poisoned(home, name=name, guard__on_nonfinite="rollback", data__loader_workers=workers)
    assert stopped(run, 9) == 143
    if lost:
        shutil.rmtree(run.folder / "checkpoints" / "step-00000009")
    record = done(run)
    assert metrics(run.folder) == metrics(back.folder)
    assert weights(run.folder, STEPS) == weights(back.folder, STEPS)
    assert anomalies(run) == anomalies(back)
    assert record.rollbacks == 1


@pytest.mark.fault("F17", "F19")
def test_a_run_that_the_guard_ended_goes_on_under_another_one(home: Path, back: Run) -> None:
    with pytest.raises(NumbersError):
        train(poisoned(home, name="mended"))
    run = poisoned(home, name="mended", guard__on_nonfinite="rollback")
    done(run)
    assert anomalies(run) == anomalies(back)
    assert weights(run.folder, STEPS) == weights(back.folder, STEPS)


@pytest.mark.fault("F19")
def test_a_rollback_before_the_first_checkpoint_begins_again(home: Path, back: Run) -> None:
    run = poisoned(home, (2, 9), name="again", guard__on_nonfinite="rollback", checkpoint__every=1000)
    record = done(run)
    assert (record.rollbacks, [row["back_to"] for row in anomalies(run)]) == (2, [0, 0])
    assert load(find(run.folder)).values["passed"] == [[0, 4], [8, 12]]  # type: ignore[arg-type]


@pytest.mark.fault("F19")
def test_rollbacks_are_bounded_and_no_run_loops(home: Path) -> None:
    run = poisoned(
        home, tuple(range(24, 400)), name="loops", guard__on_nonfinite="rollback", guard__max_rollbacks=2
    )
    with pytest.raises(NumbersError, match=r"2 rollbacks did not help \(guard\.max_rollbacks\)") as error:
        train(run)
    assert error.value.exit_code == 4
    assert [(row["action"], row["rows"]) for row in anomalies(run)] == [
        ("rollback", [[24, 28]]),
        ("rollback", [[28, 32]]),
        ("stop", [[32, 36]]),
    ]
    assert_all_checkpoints_finite(run)


@pytest.mark.fault("F19")
def test_a_margin_takes_the_rows_around_the_bad_step_too_but_none_that_were_trained_on(home: Path) -> None:
    run = poisoned(home, name="margin", guard__on_nonfinite="rollback", guard__margin=2)
    done(run)
    assert anomalies(run)[0]["back_to"] == 5
    assert load(find(run.folder)).values["passed"] == [[20, 36]]  # type: ignore[arg-type]


@config
class Damages(Logger):
    """Spoils the checkpoint of a step, once another step is done."""

    folder: Path
    spoilt: int
    at: int

    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        return [_Damages(self)]


class _Damages(Sink):
    def __init__(self, cfg: Damages):
        self.cfg = cfg

    def log(self, row: dict[str, Any]) -> None:
        path = self.cfg.folder / "checkpoints" / f"step-{self.cfg.spoilt:08d}" / "model.safetensors"
        if row["step"] == self.cfg.at and path.exists():
            path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.fault("F6", "F19")
def test_a_rollback_takes_the_newest_checkpoint_that_is_whole_though_it_is_older_than_this_start(
    home: Path,
) -> None:
    changes = {"guard__on_nonfinite": "rollback", "checkpoint__every": 3}
    run = poisoned(home, (4 * 8 - 2,), name="damaged", **changes)
    assert stopped(run, 6) == 143
    damages = Damages(folder=run.folder, spoilt=6, at=7)
    assert done(dataclasses.replace(run, logger=damages)).steps == STEPS
    assert anomalies(run)[0]["back_to"] == 3
    assert (run.folder / "checkpoints" / "step-00000006.corrupt").exists()
    whole = poisoned(home, (4 * 8 - 2,), name="undamaged", **changes)
    done(whole)
    assert metrics(run.folder) == metrics(whole.folder)
    assert weights(run.folder, STEPS) == weights(whole.folder, STEPS)


# ---- spikes


SPIKES = {"guard__threshold": 10, "guard__window": 8, "steps": 14}


@pytest.mark.fault("F18")
@pytest.mark.parametrize("action", ["log", "skip", "rollback"])
def test_a_loss_far_above_those_before_it_is_a_spike(home: Path, action: str) -> None:
    run = poisoned(home, (46,), "50", name=f"spike-{action}", guard__on_spike=action, **SPIKES)
    record = done(run)
    (row,) = anomalies(run)
    assert row == row | {"step": 12, "kind": "spike", "action": action, "rows": [[44, 48]], "module": None}
    assert row["score"] > 100
    updated = [row["updated"] for row in metrics(run.folder) if "loss" in row]
    assert updated == [action != "skip" or step != 12 for step in range(1, 15)]
    assert (record.skipped_steps, record.rollbacks) == (action == "skip", action == "rollback")


@pytest.mark.fault("F12", "F18")
def test_a_run_that_is_continued_inside_the_window_meets_the_same_spikes(home: Path) -> None:
    whole = poisoned(home, (38, 46), "50", name="spikes", guard__on_spike="skip", **SPIKES)
    done(whole)
    assert [row["step"] for row in anomalies(whole)] == [10, 12]
    run = poisoned(home, (38, 46), "50", name="spikes-stopped", guard__on_spike="skip", **SPIKES)
    for step in (4, 11):
        stopped(run, step)
    done(run)
    assert anomalies(run) == anomalies(whole)
    assert metrics(run.folder) == metrics(whole.folder)
    assert weights(run.folder, 14) == weights(whole.folder, 14)


@pytest.mark.fault("F18")
def test_a_clean_run_has_no_spikes(home: Path) -> None:
    """At the threshold that the manual calls careful; the highest score of all its steps is not half of it."""
    run = poisoned(home, (), name="calm", steps=200, seq_len=32, guard__threshold=10, guard__window=32)
    assert done(run).skipped_steps == 0
    assert anomalies(run) == []
    window: deque[float] = deque(maxlen=32)
    scores = []
    for loss in [row["loss"] for row in metrics(run.folder) if "loss" in row]:
        scores += [robust_score(loss, window)] if len(window) == 32 else []
        window.append(loss)
    assert len(scores) == 168 and max(scores) < 5


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
