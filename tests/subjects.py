"""Tiny models that read bytes, one of each kind of objective, for the tests of what is measured on them."""

from llmtrain.data.tokenizers.byte import ByteTokenizer
from llmtrain.evaluation.subject import Subject
from llmtrain.nn.init import initialise
from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Objective
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.masked import MaskedLM
from llmtrain.objectives.prefix import PrefixLM
from tests.tiny import ARCHS

TOKENIZER = ByteTokenizer(b"", n_reserved=32, content_hash="bytes")
OBJECTIVES: dict[str, Objective] = {
    "clm": CausalLM(),
    "mlm": MaskedLM(),
    "prefix_lm": PrefixLM(),
    "denoising": Denoising(),
    "denoising_prefix": Denoising(layout="prefix"),
    "contrastive": Contrastive(projection=12),
}


def subject_of(
    objective: str, architecture: str = "plain", *, seed: int = 0, seq_len: int = 64, **changes: object
) -> Subject:
    plain = {field: getattr(ARCHS[architecture], field) for field in ModelConfig.__dataclass_fields__}
    cfg = ModelConfig(**(plain | changes))
    model = OBJECTIVES[objective].build(cfg, TOKENIZER.vocab_size)
    initialise(model, n_layers=cfg.shape[0], seed=seed)
    return Subject(model.eval(), OBJECTIVES[objective], TOKENIZER, seq_len)
