"""Who is measured: what every yardstick takes of a run, and an untrained model has too."""

from typing import NamedTuple

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Objective


class Subject(NamedTuple):
    """A model, trained or not, ready to evaluate, with its objective and what makes tokens of text for it."""

    model: Model
    objective: Objective
    tokenizer: Tokenizer
    seq_len: int  # no stream that it reads is longer
