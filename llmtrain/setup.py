"""What a run's config comes to once its data are there: model, rows, sizes, length."""

from typing import NamedTuple

from llmtrain.accounting import Size, flops_of, size_of
from llmtrain.data.examples import Examples
from llmtrain.data.prepare import Prepared
from llmtrain.data.rows import DocumentRows, PackedRows, Rows, Stream
from llmtrain.data.shards import Shards
from llmtrain.errors import ConfigError
from llmtrain.nn.base import Flops
from llmtrain.nn.init import initialise
from llmtrain.objectives.base import Objective, Task
from llmtrain.run import Run
from llmtrain.scoring import HeldOut


class Setup(NamedTuple):
    run: Run
    prepared: Prepared
    task: Task
    rows: tuple[Rows, ...]  # by part of the training data
    held_out: dict[str, HeldOut]
    size: Size
    flops: Flops  # forward and backward of one row
    horizon: int  # optimiser steps of the whole run

    @property
    def raw_per_row(self) -> int:
        """Raw tokens that a row adds to those that were read."""
        return self.run.objective.raw_len(self.run.seq_len) - self.run.objective.overlap

    @property
    def n_tokens(self) -> int:
        """Tokens in the training data."""
        return sum(part.shards.n_tokens for part in self.prepared.train)

    def examples(self) -> Examples:
        weights = [part.weight for part in self.prepared.train]
        names = [part.name for part in self.prepared.train]
        stream = Stream(self.rows, weights, self.run.data_seed, names=names)
        run = self.run
        vocab = self.prepared.vocab
        return Examples(self.rows, stream, run.objective, vocab, seq_len=run.seq_len, seed=run.data_seed)


def set_up(run: Run, prepared: Prepared) -> Setup:
    """Build the model with its initial weights, lay out the rows and count.

    Raises ConfigError where a layer cannot have the width or the data have no row of that length.
    """
    vocab_size = prepared.vocab.size
    try:
        cfg = run.sized(vocab_size)
        model = run.objective.build(cfg, vocab_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    initialise(model, n_layers=cfg.shape[0], seed=run.init_seed)
    rows = tuple(rows_of(part.shards, run) for part in prepared.train)
    flops = flops_of(model, run.objective, run.seq_len)
    return Setup(
        run=run,
        prepared=prepared,
        task=Task(model, run.objective),
        rows=rows,
        held_out={
            name: HeldOut(
                rows=rows_of(shards, run, run.objective.evaluation(), tail=True),
                fingerprint=shards.fingerprint,
                tokenizer_hash=prepared.tokenizer.hash,
                isolate_documents=run.data.isolate_documents,
            )
            for name, shards in held_out(prepared).items()
        },
        size=size_of(model),
        flops=flops,
        horizon=run.horizon(
            vocab_size, flops_per_row=flops.model, rows_per_epoch=sum(r.n_rows for r in rows)
        ),
    )


def held_out(prepared: Prepared) -> dict[str, Shards]:
    """The held-out shards by the name of their score: of a mix, one set for each of its parts."""
    if len(prepared.validation) == 1:
        return {"validation": next(iter(prepared.validation.values()))}
    return {f"validation_{name}": shards for name, shards in prepared.validation.items()}


def rows_of(shards: Shards, run: Run, objective: Objective | None = None, *, tail: bool = False) -> Rows:
    """The rows that an objective takes from shards; with ``tail`` to the last token, as evaluation wants them."""
    objective = objective or run.objective
    raw_len = objective.raw_len(run.seq_len)
    if objective.rows == "document":
        return DocumentRows(shards, raw_len)
    return PackedRows(
        shards, raw_len, overlap=objective.overlap, isolate=run.data.isolate_documents, tail=tail
    )
