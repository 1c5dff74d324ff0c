"""N of a plan and N of a fit are one count, whatever head the objective has."""

import pytest

from llmtrain.accounting import n_fit, size
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.scaling.runs import N_CONVENTIONS
from records import record
from tiny import ARCHS


@pytest.mark.parametrize("objective", [CausalLM(), Contrastive(), Contrastive(projection=8)])
def test_the_input_table_counts_where_it_is_the_head_alone(objective) -> None:
    found = size(ARCHS["plain"], objective, 200)
    pairs = 5 if isinstance(objective, Contrastive) else None
    counted = n_fit(found)
    assert counted == N_CONVENTIONS["fit"](record("r", n=found._asdict(), pairs=pairs))
    assert counted == (found.total if pairs is None else found.total - found.embedding)
