"""What a run's config comes to once its data are there: model, rows, sizes, length."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from llmtrain.accounting import Size, flops_of, size_of
from llmtrain.data.cursor import Cursor
from llmtrain.data.examples import Examples
from llmtrain.data.prepare import Prepared
from llmtrain.data.rows import DocumentRows, PackedRows, Rows, Stream
from llmtrain.data.shards import Shards
from llmtrain.errors import ConfigError, DataError
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
    stream: Stream  # the order of the run over them
    held_out: dict[str, HeldOut]  # by "validation set/score"
    size: Size
    flops: Flops  # forward and backward of one row
    horizon: int  # optimiser steps of the whole run

    @property
    def raw_per_row(self) -> float:
        """Raw tokens that a row adds to those that were read, on average."""
        return raw_per_row(self.prepared, self.rows)

    @property
    def n_tokens(self) -> int:
        """Raw tokens of one pass over the training rows."""
        return sum(rows.n_tokens for rows in self.rows)

    @property
    def main_scores(self) -> tuple[str, ...]:
        """Of ``held_out``, what makes the run's own score: the first evaluation, on the corpus' own validation."""
        main = self.run.objective.evaluations()[0].score_name
        named = self.prepared.held_out
        return tuple(
            key
            for key, of in self.held_out.items()
            if of.objective.score_name == main and key.partition("/")[0] not in named
        )

    def unique_tokens(self, cursor: Cursor) -> int:
        """How many different raw tokens the rows hold that were trained on."""
        end = cursor.row(0)
        counts = np.array(self.stream.consumed(end))
        for first, last in cursor.passed:
            counts -= np.subtract(self.stream.consumed(min(last, end)), self.stream.consumed(min(first, end)))
        read = zip(counts.tolist(), self.rows, strict=True)
        return sum(min(round(n * rows.tokens_per_row), rows.n_tokens) for n, rows in read)

    def examples(self) -> Examples:
        run, vocab = self.run, self.prepared.vocab
        return Examples(self.rows, self.stream, run.objective, vocab, seq_len=run.seq_len, seed=run.data_seed)


def raw_per_row(prepared: Prepared, rows: Sequence[Rows]) -> float:
    return sum(part.weight * r.tokens_per_row for part, r in zip(prepared.train, rows, strict=True))


def set_up(run: Run, prepared: Prepared) -> Setup:
    """Build the model with its initial weights, lay out the rows and count.

    A model that shall be sharded is on the meta device, without weights.

    Raises ConfigError where a layer cannot have the width, and DataError where the text is less than one step takes.
    """
    vocab_size = prepared.vocab.size
    try:
        run.objective.check_vocab(prepared.vocab, run.seq_len)
        cfg = run.sized(vocab_size)
        with torch.device("meta") if run.trainer.sharded else nullcontext():
            model = run.build(vocab_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if run.trainer.activation_checkpointing == "block":
        model.recompute_blocks()
    if not run.trainer.sharded:
        initialise(model, n_layers=cfg.shape[0], seed=run.init_seed)
    documents = accumulate((part.shards.n_documents for part in prepared.train), initial=0)
    rows = tuple(
        rows_of(part.shards, run, first_document=first)
        for part, first in zip(prepared.train, documents, strict=False)
    )
    if (n_rows := sum(r.n_rows for r in rows)) < run.batch_rows:
        raise DataError(
            f"the training text makes {n_rows:,} rows of seq_len={run.seq_len}, fewer than the batch_rows="
            f"{run.batch_rows} of one step: give more text, or lower batch_rows or seq_len"
        )
    names, weights = [part.name for part in prepared.train], [part.weight for part in prepared.train]
    flops = flops_of(model, run.objective, run.seq_len, run.batch_rows)
    return Setup(
        run=run,
        prepared=prepared,
        task=Task(model, run.objective),
        rows=rows,
        stream=Stream(rows, weights, run.data_seed, names=names),
        held_out=held_out_rows(run, prepared),
        size=size_of(model),
        flops=flops,
        horizon=run.horizon(
            vocab_size,
            flops_per_row=flops.model,
            raw_per_row=raw_per_row(prepared, rows),
            rows_per_epoch=n_rows,
        ),
    )


def held_out_rows(run: Run, prepared: Prepared) -> dict[str, HeldOut]:
    """By "validation set/score" what is scored. Raises ConfigError where rows cannot be scored."""
    found = {
        f"{name}/{objective.score_name}": HeldOut(
            objective=objective,
            rows=rows_of(shards, run, objective, tail=True),
            fingerprint=shards.fingerprint,
            tokenizer_hash=prepared.tokenizer.hash,
            isolate_documents=run.data.isolate_documents,
        )
        for name, shards in held_out(prepared).items()
        for objective in run.objective.evaluations()
    }
    for one in found.values():
        one.objective.check_held_out(one.rows[i] for i in range(one.rows.n_rows))
    return found


def held_out(prepared: Prepared) -> dict[str, Shards]:
    """The held-out shards by the name of their set: of a mix, one for each of its parts; then the named ones."""
    if len(prepared.validation) == 1:
        return {"validation": next(iter(prepared.validation.values()))} | prepared.held_out
    return {f"validation_{name}": shards for name, shards in prepared.validation.items()} | prepared.held_out


def rows_of(
    shards: Shards,
    run: Run,
    objective: Objective | None = None,
    *,
    tail: bool = False,
    first_document: int = 0,
) -> Rows:
    """The rows that an objective takes from shards; with ``tail`` to the last token, as evaluation wants them."""
    objective = objective or run.objective
    raw_len = objective.raw_len(run.seq_len)
    if objective.rows == "document":
        return DocumentRows(shards, raw_len, first_document=first_document)
    return PackedRows(
        shards, raw_len, overlap=objective.overlap, isolate=run.data.isolate_documents, tail=tail
    )
