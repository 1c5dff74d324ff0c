"""Every objective trains every architecture: a new one of either is one line here."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops
from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Objective, Task
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops import backend
from llmtrain.scoring import HeldOut, score
from tests.tiny import ARCHS, FAMILIES, ROWS, VOCAB, Uniform, batch_of, examples_of, model_of

SEQ_LEN = 24
OBJECTIVES: dict[str, Objective] = {
    "clm": CausalLM(),
}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
archs = pytest.mark.parametrize("cfg", ARCHS.values(), ids=ARCHS.keys())
families = pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES.keys())


def fitting(objective: Objective, cfg: ModelConfig) -> None:
    """Skip a pair that is refused when the config is made: what refuses it is tested elsewhere."""
    try:
        objective.check(cfg, seq_len=SEQ_LEN, one_document=objective.rows == "document")
    except ValueError as error:
        pytest.skip(f"refused: {error}")


@archs
@objectives
def test_every_pair_learns_a_batch_with_every_parameter(objective, cfg):
    fitting(objective, cfg)
    task, batch = Task(model_of(objective, cfg), objective), batch_of(objective, rows=ROWS)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    scores = []
    for _ in range(30):
        out = task(batch)
        optimizer.zero_grad()
        out.loss.backward()
        if not scores:  # no orphaned head, norm or projection
            assert [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
        scores.append((out.nats.sum() / out.counts.sum()).item())
    assert scores[-1] < 0.5 * scores[0]


@archs
@objectives
def test_what_accounting_counts_is_what_the_objective_passes(objective, cfg):
    """Every stack that is built is passed, a head is run on what is scored, and the counter counts what is said."""
    fitting(objective, cfg)
    passes = objective.passes(SEQ_LEN)
    assert {one.stack for one in passes} == {"trunk"} | ({"encoder"} if objective.encoder else set())
    model, batch = model_of(objective, cfg), batch_of(objective, rows=ROWS, documents=1)
    with backend.force(attention="reference"), FlopCounterMode(display=False) as counter:
        out = objective.loss(model, batch)
        out.loss.backward()
    assert out.counts.mean().item() == pytest.approx(objective.scored(SEQ_LEN))
    said = flops(cfg, objective, SEQ_LEN, vocab_size=VOCAB.size, batch_rows=ROWS).counter
    assert counter.get_total_flops() == pytest.approx(ROWS * said, abs=ROWS)  # a mixture's share is rounded


@families
@objectives
def test_no_pair_beats_the_entropy_of_uniform_tokens(objective, cfg):
    """Trained on i.i.d. tokens, whatever lies below the objective's closed-form floor was heard from the answer."""
    fitting(objective, cfg)
    seq_len, rows, steps = 16, 32, 60
    task = Task(model_of(objective, cfg), objective)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2, weight_decay=0.0)
    train = Uniform(rows * steps, objective.raw_len(seq_len), seed=1000)
    for step in range(steps):
        optimizer.zero_grad()
        task(
            examples_of(objective, [train[rows * step + i] for i in range(rows)], seq_len=seq_len)
        ).loss.backward()
        optimizer.step()
    for scored in objective.evaluations():
        held_out = Uniform(128, scored.raw_len(seq_len), seed=0)
        found = score(
            task,
            HeldOut(scored, held_out, "", "", True),
            VOCAB,
            seq_len=seq_len,
            batch_rows=32,
            context=nullcontext,
        ).score
        assert found.se is not None
        assert found.value >= scored.floor(VOCAB, seq_len) - 3 * found.se
