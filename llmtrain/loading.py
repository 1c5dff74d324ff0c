"""A trained run back in memory: ``llmtrain.load("runs/a")``."""

from pathlib import Path
from typing import NamedTuple

import torch

from llmtrain.checkpoint import find, load, newest, specs
from llmtrain.compose import instantiate
from llmtrain.data.tokenizers.base import Tokenizer, load_tokenizer
from llmtrain.errors import ConfigError
from llmtrain.nn.model import Model
from llmtrain.objectives.base import Objective, Task
from llmtrain.run import Run
from llmtrain.run_folder import TOKENIZER, read_config


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
    task = Task(
        config.objective.build(config.sized(tokenizer.vocab_size), tokenizer.vocab_size), config.objective
    )
    task.to(torch.float64 if config.trainer.precision == "fp64" else torch.float32)
    state = load(path, expect=specs({"model": task.state_dict()}))
    weights = state.tensors["model"]
    if config.optim.ema is not None:
        average = load(path).tensors["optimizer"]
        weights |= {name.removeprefix("ema."): t for name, t in average.items() if name.startswith("ema.")}
    task.load_state_dict(weights)
    task.eval()
    return Loaded(config, task.model, config.objective, tokenizer)
