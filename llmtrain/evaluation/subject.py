"""Who is measured: what every yardstick takes of a run, and an untrained model has too."""

import copy
from typing import NamedTuple

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.nn.init import initialise
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Objective


class Subject(NamedTuple):
    """A model, trained or not, ready to evaluate, with its objective and what makes tokens of text for it."""

    model: Model
    objective: Objective
    tokenizer: Tokenizer
    seq_len: int  # no stream that it reads is longer


def untrained(subject: Subject, seed: int) -> Subject:
    """The same architecture with the weights that training from ``seed`` begins with."""
    model = copy.deepcopy(subject.model)
    initialise(model, n_layers=len(model.trunk.blocks), seed=seed)
    return subject._replace(model=model.eval())
