"""Negatives of all ranks: DDP's average over two ranks is the gradient of one process with the whole batch."""

import datetime
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Loss, Task
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.pairs import Pairs, View
from llmtrain.types import Seq
from tests.contrast import DROPPED, EXPERTS, PLAIN
from tests.ranks import on_ranks
from tests.tiny import batch_of, model_of

WORLD, ROWS = 2, 6
EVERYTHING: dict[str, Any] = {
    "pairs": "dropout", "projection": 16, "matryoshka": (4, 8), "learn_temperature": True, "aux": "mlm"
}  # fmt: skip
CASES: list[tuple[Contrastive, ModelConfig]] = [
    (Contrastive(), PLAIN),
    (Contrastive(directions="one"), PLAIN),
    (Contrastive(**EVERYTHING), DROPPED),
    (Contrastive(**EVERYTHING, chunk_rows=2), DROPPED),
    (Contrastive(chunk_rows=2), EXPERTS),
]


def part_of(batch: Pairs, rows: slice) -> Pairs:
    def view(one: View) -> View:
        return View(Seq(*(x[rows] for x in one.text)), *(x[rows] for x in one[1:]))

    return Pairs(view(batch.first), view(batch.second), batch.marks[rows])


def batch_across(objective: Contrastive) -> Pairs:
    """Rows of one document, and rows that say the same, on both ranks."""
    batch = batch_of(objective, rows=ROWS, seq_len=12)
    batch.marks[5, 0] = batch.marks[0, 0]
    batch.marks[4, 1] = batch.marks[1, 2]
    return batch


def learn(task: torch.nn.Module, batch: Pairs) -> tuple[Loss, dict[str, Tensor]]:
    out: Loss = task(batch)
    out.loss.backward()
    return out, {name.removeprefix("module."): p.grad for name, p in task.named_parameters()}


def whole_batches() -> list[tuple[Loss, dict[str, Tensor]]]:
    """Every case in this process alone; before there is a process group."""
    assert not dist.is_initialized()
    return [learn(Task(model_of(one, cfg).double(), one), batch_across(one)) for one, cfg in CASES]


def two_are_one(rank: int, whole: list[tuple[Loss, dict[str, Tensor]]]) -> None:
    mine = slice(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD)
    for (objective, cfg), (expected, expected_grads) in zip(CASES, whole, strict=True):
        task = DistributedDataParallel(Task(model_of(objective, cfg).double(), objective))
        out, grads = learn(task, part_of(batch_across(objective), mine))
        torch.testing.assert_close(out.nats, expected.nats[mine], rtol=0, atol=1e-10)
        loss = out.loss.detach().clone()
        dist.all_reduce(loss)
        torch.testing.assert_close(loss / WORLD, expected.loss.detach(), rtol=0, atol=1e-10)
        assert grads.keys() == expected_grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[name], rtol=0, atol=1e-10)


def evaluation_speaks_to_no_other_rank(rank: int) -> None:
    objective = Contrastive(eval_negatives=2)
    model = model_of(objective, PLAIN).eval()
    main = objective.evaluations()[0]
    if rank == 0:  # alone: the other would have to join in
        with torch.no_grad():
            found = list(main.held_out(model, [batch_of(main, rows=ROWS, seq_len=12)]))
        assert sum(len(nats) for nats, _ in found) == ROWS


def work() -> None:
    whole = whole_batches()
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    try:
        evaluation_speaks_to_no_other_rank(rank)
        two_are_one(rank, whole)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_make_the_gradients_of_one_process_with_the_whole_batch() -> None:
    on_ranks(WORLD, work)
