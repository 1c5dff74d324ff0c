"""Every objective trains every architecture."""

import pytest
import torch

from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Objective, Task
from llmtrain.types import Visibility
from tests.matrix import ROWS, archs, fitting, objectives
from tests.tiny import batch_of, model_of


def unheard(objective: Objective, cfg: ModelConfig) -> str:
    """What the last layer of a trunk makes of a prefix is read by nobody where nothing in the prefix is scored."""
    in_prefix = objective.sees is Visibility.PREFIX
    return f"model.trunk.blocks.{cfg.shape[0] - 1}.mixer.prefix." if in_prefix else "none"


@pytest.mark.fault("F43")
@archs
@objectives
def test_every_pair_learns_a_batch_with_every_parameter(objective, cfg):
    fitting(objective, cfg)
    task, batch = Task(model_of(objective, cfg), objective), batch_of(objective, rows=ROWS)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    scores = []
    for _ in range(14):
        out = task(batch)
        optimizer.zero_grad()
        out.loss.backward()
        if not scores:  # no orphaned head, norm or projection
            idle = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()]
            assert [name for name in idle if not name.startswith(unheard(objective, cfg))] == []
        optimizer.step()
        scores.append((out.nats.sum() / out.counts.sum()).item())
    assert scores[-1] < 0.5 * scores[0]
