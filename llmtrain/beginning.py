"""What a run begins with: newly drawn weights, those of a public model, or the state of a checkpoint."""

import logging
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from llmtrain.callbacks.checkpoints import restore
from llmtrain.lit import Pretrain
from llmtrain.nn.init import draws, initialise
from llmtrain.nn.model import Model, TokenHead
from llmtrain.origin import Origin, public_folder
from llmtrain.setup import Setup
from llmtrain.sharding import shard

log = logging.getLogger(__name__)


def from_public(setup: Setup, model: Model) -> None:
    """Give ``model`` the weights of the Hugging Face folder that ``init_from`` names, if it names one."""
    folder = public_folder(setup.run)
    if folder is None:
        return
    from llmtrain.export.base import Use
    from llmtrain.export.start import start_from  # imports transformers

    objective, tokenizer = setup.run.objective, setup.prepared.tokenizer
    use = Use(objective.sees, objective.encoder, tokens=isinstance(model.head, TokenHead))
    start_from(folder, model, setup.run.sized(tokenizer.vocab_size), use, tokenizer)
    log.info("starting from the weights of %s", folder)


def laid_out(module: Pretrain, *, setup: Setup, fresh: bool) -> None:
    """Split a model that shall be sharded over the ranks, and give it its initial weights: ``fresh`` or to be replaced.

    It is on the meta device; any other is there already.
    """
    if not setup.run.trainer.sharded:
        return
    shard(
        setup.task,
        module.device_mesh,
        device=module.trainer.strategy.root_device,
        dtype=torch.float64 if setup.run.trainer.chosen_precision() == "fp64" else torch.float32,
        values=partial(_values, setup=setup, fresh=fresh),
    )


def _values(model: Model, *, setup: Setup, fresh: bool) -> Iterator[tuple[str, Tensor]]:
    """The initial weights one by one; those of a public folder by way of a whole model on each rank's host."""
    run, vocab_size = setup.run, setup.prepared.vocab.size
    n_layers, _ = run.sized(vocab_size).shape
    if not fresh or public_folder(run) is None:
        yield from draws(model, n_layers=n_layers, seed=run.init_seed)
        return
    whole = run.build(vocab_size)
    initialise(whole, n_layers=n_layers, seed=run.init_seed)
    from_public(setup, whole)
    yield from whole.named_parameters()


def taken_over(module: Pretrain, *, origin: Origin | None) -> None:
    """Put the state of the checkpoint that the run goes on from into a module whose optimiser is built."""
    if origin is None:
        return
    restore(module, origin.path, weights_alone=not origin.full)
    if origin.branches and origin.full:
        progress = module.progress
        progress.branch_step, progress.branch_rows = progress.step, progress.rows
        progress.seconds = progress.wall_before = 0.0
