"""A trained run back in memory: ``llmtrain.load("runs/a")``."""

from pathlib import Path
from typing import NamedTuple

from llmtrain.checkpoint import find, newest
from llmtrain.compose import instantiate
from llmtrain.data.tokenizers.base import Tokenizer, load_tokenizer
from llmtrain.errors import ConfigError
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Objective
from llmtrain.run import Run
from llmtrain.run_folder import TOKENIZER, read_config
from llmtrain.trained import trained


class Loaded(NamedTuple):
    config: Run
    model: Model
    objective: Objective
    tokenizer: Tokenizer


def folder_of(run: str | Path) -> Path:
    """A run's folder, given as a path or as a name under runs/."""
    path = Path(run)
    return path if len(path.parts) > 1 or (path / "config.yaml").exists() else Path("runs") / path


def load_run(run: str | Path, *, step: int | None = None) -> Loaded:
    """The model of a run with the weights of its newest checkpoint, or of ``step``, on the CPU and ready to evaluate.

    ``run`` is a folder, or a name under runs/. The run may be going on: nothing in its folder is changed. Where it kept
    an average of the weights, that is what is loaded. Raises ConfigError where there is no such run or checkpoint.
    """
    folder = folder_of(run)
    config = instantiate(read_config(folder))
    path = newest(folder) if step is None else find(folder, step=step)
    if path is None:
        raise ConfigError(
            f"{folder} has no checkpoint yet: train it, or wait for its first (checkpoint.every)"
        )
    tokenizer = load_tokenizer(folder / TOKENIZER)
    task = trained(config, tokenizer.vocab_size, path)
    return Loaded(config, task.model, config.objective, tokenizer)
