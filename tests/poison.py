"""Tiny runs with rows that make their loss what it should not be, and what is to be seen of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtrain.checkpoint import load
from llmtrain.config import config
from llmtrain.objectives.base import Loss, Objective
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from llmtrain.run import Run
from runs import tiny

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
