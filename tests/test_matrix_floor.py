"""No pair beats the entropy of uniform tokens: whatever lies below the floor was heard from the answer."""

from contextlib import nullcontext

import pytest
import torch

from llmtrain.objectives.base import Task
from llmtrain.scoring import HeldOut, score
from tests.matrix import OBJECTIVES, families, fitting, objectives
from tests.tiny import FAMILIES, VOCAB, Uniform, examples_of, model_of

CORE = [OBJECTIVES[name] for name in ("clm", "mlm", "denoising", "contrastive")]
LENGTH, ROWS, STEPS = 16, 28, 30


@pytest.mark.slow
@families
@objectives
def test_no_pair_beats_the_entropy_of_uniform_tokens(objective, cfg):
    fitting(objective, cfg)
    if objective not in CORE and cfg is not FAMILIES["hybrid"]:
        pytest.skip("a variant is shown on the hybrid, which has every kind of layer")
    task = Task(model_of(objective, cfg), objective)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2, weight_decay=0.0)
    train = Uniform(ROWS * STEPS, objective.raw_len(LENGTH), seed=1000)
    for step in range(STEPS):
        rows = [train[ROWS * step + i] for i in range(ROWS)]
        optimizer.zero_grad()
        task(examples_of(objective, rows, seq_len=LENGTH)).loss.backward()
        optimizer.step()
    for scored in objective.evaluations():
        held_out = HeldOut(scored, Uniform(128, scored.raw_len(LENGTH), seed=0), "", "", True)
        found = score(task, held_out, VOCAB, seq_len=LENGTH, batch_rows=32, context=nullcontext).score
        assert found.se is not None
        assert found.value >= scored.floor(VOCAB, LENGTH) - 3 * found.se
