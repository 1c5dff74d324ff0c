"""A trained model, whole and in memory, from a checkpoint that any number of ranks has written."""

from pathlib import Path

import torch

from llmtrain.checkpoint import load, memory, specs
from llmtrain.objectives.base import Task
from llmtrain.run import Run


def trained(run: Run, vocab_size: int, checkpoint: Path) -> Task:
    """The task of ``run`` with the weights in ``checkpoint``, or their average where it kept one; on the CPU."""
    task = Task(run.objective.build(run.sized(vocab_size), vocab_size), run.objective)
    task.to(torch.float64 if run.trainer.precision == "fp64" else torch.float32)
    state = load(checkpoint, expect=specs({"model": task.state_dict()}))
    weights = {name: memory(stored) for name, stored in state.tensors["model"].items()}
    if run.optim.ema is not None:
        average = load(checkpoint, only={"optimizer"}).tensors["optimizer"]
        weights |= {n.removeprefix("ema."): memory(t) for n, t in average.items() if n.startswith("ema.")}
    task.load_state_dict(weights)
    task.eval()
    return task
