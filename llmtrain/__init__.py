"""llmtrain: pretraining experiments whose numbers can be trusted."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmtrain.loading import Loaded

__version__ = "0.1.0"


def load(run: str | Path, *, step: int | None = None) -> "Loaded":
    """A trained run as (config, model, objective, tokenizer); see ``llmtrain.loading.load_run``."""
    from llmtrain.loading import load_run  # it imports torch, which `--help` does without

    return load_run(run, step=step)
