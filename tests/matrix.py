"""The matrix of what is trained: every objective variant x every architecture. A new one of either is one line."""

import pytest

from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Objective
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.fim import FillInTheMiddle
from llmtrain.objectives.masked import MaskedLM
from llmtrain.objectives.mixture import Mixture
from llmtrain.objectives.noise import BartNoise, SpanNoise, SuffixNoise
from llmtrain.objectives.prefix import PrefixLM
from tests.tiny import ARCHS, FAMILIES

UL2 = (
    SpanNoise(mode="R"),
    SpanNoise(mode="R", mean=8.0),
    SpanNoise(mode="X", rate=0.5),
    SpanNoise(mode="X", rate=0.5, mean=8.0),
    SpanNoise(mode="X", mean=64.0),
    SpanNoise(mode="X", rate=0.5, mean=64.0),
    SuffixNoise(mode="S", rate=0.25),
)
OBJECTIVES: dict[str, Objective] = {
    "clm": CausalLM(z_loss=1e-4),
    "prefix_lm": PrefixLM(),
    "fim": FillInTheMiddle(),
    "mlm": MaskedLM(),
    "mlm_words": MaskedLM(unit="word", span=2.0),
    "denoising": Denoising(),
    "denoising_prefix": Denoising(layout="prefix"),
    "denoising_causal": Denoising(layout="causal"),
    "bart": Denoising(noise=BartNoise()),
    "ul2": Mixture(noises=UL2),
    "contrastive": Contrastive(eval_negatives=15, learn_temperature=True, projection=16),
    "contrastive_mlm": Contrastive(eval_negatives=15, pairs="adjacent", aux="mlm"),
}
ROWS = 7  # of a batch: what UL2's pattern repeats after
SEQ_LEN = 24

objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
archs = pytest.mark.parametrize("cfg", ARCHS.values(), ids=ARCHS.keys())
families = pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES.keys())


def fitting(objective: Objective, cfg: ModelConfig) -> None:
    """Skip a pair that is refused when the config is made, and only for its visibility or its packing."""
    try:
        objective.check(cfg, seq_len=SEQ_LEN, one_document=objective.rows == "document")
    except ValueError as error:
        assert "can only be" in str(error) or "packed row" in str(error)
        pytest.skip(f"refused: {error}")
