"""A batch in chunks is the same batch: in loss, gradient and routing, in less memory.

Run as a command, this file says how many bytes a step adds to its process: ``rows chunk_rows`` (0: no chunks).
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.config import to_plain
from llmtrain.nn.model import ModelConfig
from llmtrain.nn.routing import by_layer
from llmtrain.objectives.base import Task
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.pairs import Pairs
from llmtrain.types import NO_DOC
from tests.contrast import DROPPED, EXPERTS, PLAIN
from tests.tiny import batch_of, model_of


def loss_and_gradient(objective: Contrastive, cfg: ModelConfig, batch: Pairs) -> tuple[Any, list[Tensor]]:
    task = Task(model_of(objective, cfg).double(), objective)
    out = task(batch)
    return out, list(torch.autograd.grad(out.loss, list(task.parameters())))


@pytest.mark.parametrize("rows", [1, 3, 7, 50])
@pytest.mark.parametrize("cfg", [DROPPED, EXPERTS], ids=["dropout", "experts"])
def test_chunks_change_neither_loss_nor_gradient(cfg, rows):
    """With dropout, a balance loss, a term for tokens, widths and a learnt temperature."""
    objective = Contrastive(aux="mlm", matryoshka=(8,), learn_temperature=True)
    batch = batch_of(objective, rows=7)
    whole, expected = loss_and_gradient(objective, cfg, batch)
    parts, found = loss_and_gradient(dataclasses.replace(objective, chunk_rows=rows), cfg, batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(parts.nats, whole.nats, rtol=0, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_what_routers_count_is_counted_once_whatever_is_made_anew():
    objective = Contrastive()
    batch = batch_of(objective, rows=7)
    whole, _ = loss_and_gradient(objective, EXPERTS, batch)
    parts, _ = loss_and_gradient(dataclasses.replace(objective, chunk_rows=2), EXPERTS, batch)
    assert len(whole.routing) == 2 and len(parts.routing) == 2 * 4
    tokens = sum((view.text.doc != NO_DOC).sum().item() for view in batch[:2])
    for one, other in zip(by_layer(2, whole.routing), by_layer(2, parts.routing), strict=True):
        assert one.counts.sum() == other.counts.sum() == 2 * tokens
        assert torch.equal(one.counts, other.counts)


def test_a_chunk_is_no_part_of_what_makes_a_run():
    chunked = Contrastive(chunk_rows=8)
    assert to_plain(chunked, identity=True) == to_plain(Contrastive(), identity=True)


HOME = Path(__file__).parents[1]
STATUS = Path("/proc/self/status")


def added(rows: int, chunk_rows: int) -> int:
    """Bytes. Freed memory goes back at once, so that the peak is what was held, and no hole in a heap."""
    command = [sys.executable, "-m", "tests.test_contrastive_chunks", str(rows), str(chunk_rows)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HOME, env=env, check=True, stdout=subprocess.PIPE, timeout=200)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="reads a process's peak where Linux keeps it")
def test_memory_is_that_of_a_chunk_and_not_of_the_batch():
    """Sixteen chunks in at most half as much again as one."""
    one, chunked = added(16, 0), added(256, 16)
    assert one > 16 * 64 * 64 * 4 * 20  # it did hold some twenty activations
    assert chunked < 1.5 * one


def peak() -> int:
    """Bytes that this process held at most; not ``getrusage``, which begins with what its parent held."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def step(rows: int, chunk_rows: int) -> int:
    objective = Contrastive(chunk_rows=chunk_rows or None)
    model = model_of(objective, dataclasses.replace(PLAIN, d_model=64))
    objective.loss(model, batch_of(objective, rows=2, seq_len=64)).loss.backward()  # what is loaded only once
    batch = batch_of(objective, rows=rows, seq_len=64)
    before = peak()
    objective.loss(model, batch).loss.backward()
    return peak() - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(step(*map(int, sys.argv[1:])))
