"""Of every pair, what is counted is what happens."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops
from llmtrain.objectives.prefix import PrefixLM
from llmtrain.ops import backend
from tests.matrix import ROWS, SEQ_LEN, archs, fitting, objectives
from tests.tiny import VOCAB, batch_of, model_of


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
    by_chance = 3 * SEQ_LEN / (12 * ROWS) ** 0.5 if isinstance(objective, PrefixLM) else 1e-9
    assert out.counts.double().mean().item() == pytest.approx(objective.scored(SEQ_LEN), abs=by_chance)
    said = flops(cfg, objective, SEQ_LEN, vocab_size=VOCAB.size, batch_rows=ROWS).counter
    assert counter.get_total_flops() == pytest.approx(ROWS * said, abs=ROWS)  # a mixture's share is rounded
