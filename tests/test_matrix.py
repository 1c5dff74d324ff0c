"""Every objective trains every architecture: a new one of either is one line here."""

import pytest
import torch

from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Objective
from llmtrain.objectives.causal import CausalLM
from tests.tiny import DENSE, batch_of, model_of

OBJECTIVES: dict[str, Objective] = {
    "clm": CausalLM(),
}
ARCHS: dict[str, ModelConfig] = {
    **DENSE,
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
archs = pytest.mark.parametrize("cfg", ARCHS.values(), ids=ARCHS.keys())


@archs
@objectives
def test_every_pair_learns_a_batch_with_every_parameter(objective, cfg):
    model, batch = model_of(objective, cfg), batch_of(objective)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    scores = []
    for _ in range(25):
        out = objective.loss(model, batch)
        optimizer.zero_grad()
        out.loss.backward()
        if not scores:  # no orphaned head, norm or projection
            assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
        scores.append((out.nats.sum() / out.counts.sum()).item())
    assert scores[-1] < 0.5 * scores[0]


@archs
@objectives
def test_what_accounting_counts_is_what_the_objective_passes(objective, cfg):
    """Every stack that is built is passed, and what a row scores is what a head is run on."""
    passes = objective.passes(24)
    assert {one.stack for one in passes} == {"trunk"} | ({"encoder"} if objective.encoder else set())
    out = objective.loss(model_of(objective, cfg), batch_of(objective))
    assert out.counts.tolist() == [objective.scored(24)] * 4
