"""From a target to a cell: the width is solved for and everything is counted on the meta device, before any run."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

from llmtrain.accounting import Size, flops_of, meta_model, n_fit, size_of, solve_width
from llmtrain.compose import run_from
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.prepare import Progress as Told
from llmtrain.errors import ConfigError
from llmtrain.nn.base import Flops
from llmtrain.run import Run
from llmtrain.setup import raw_per_row, rows_of
from llmtrain.sweep.cells import Cell, Role, Target
from llmtrain.sweep.settings import Limits

STEP = 8  # widths are its multiples
MISS = 0.5  # of a size: small models have few widths, and a fit takes the size that came out


class Counted(NamedTuple):
    d_model: int
    size: Size
    flops: Flops  # of one row, forward and backward


class Series:
    """What the runs of one series come to at any size; its corpus is prepared, once for all series that share it."""

    def __init__(self, name: str, words: Sequence[str], *, depth: int, progress: Told | None = None):
        self.name, self.words, self.depth = name, tuple(words), depth
        self.run: Run = run_from([*self.words, f"model.n_layers={depth}", "model.d_model=null", "steps=1"])
        self.prepared: Prepared = prepare(self.run.data, self.run.tokenizer, progress=progress)
        rows = [rows_of(part.shards, self.run) for part in self.prepared.train]
        self.raw_per_row = raw_per_row(self.prepared, rows)
        self.n_tokens = sum(r.n_tokens for r in rows)
        self.counted = functools.cache(self._count)  # by width

    def at(self, n: float) -> Counted:
        """The model whose parameters, as fits count them, are nearest to ``n``.

        Raises ConfigError where no width comes near it.
        """
        cfg = dataclasses.replace(self.run.model, n_layers=self.depth, d_model=None)
        vocab_size = self.prepared.vocab.size
        width = solve_width(cfg, self.run.objective, vocab_size, n=n, step=STEP, counted=n_fit, miss=MISS)
        return self.counted(width)

    def cell(self, target: Target, limits: Limits, *, batch_rows: int | None = None) -> Cell:
        found, batch_rows = self.at(target.n), batch_rows or self.run.batch_rows
        n = n_fit(found.size)
        if target.tokens is None:
            steps = round(target.flops / (found.flops.model * batch_rows))
        else:  # of the size that came out, so that tokens a parameter are those that were asked for
            steps = round(target.tokens * n / target.n / (self.raw_per_row * batch_rows))
        if steps < 1:
            raise ConfigError(
                f"{self.name}: {target.flops:g} FLOPs are less than one step of {batch_rows} rows at N = {n:,}: "
                "give a larger budget, or a smaller batch_rows"
            )
        tokens = round(steps * batch_rows * self.raw_per_row)
        epochs = tokens / self.n_tokens
        return Cell(
            id=f"{self.name}-{target.role.value}-n{n}-s{steps}-seed{target.seed}",
            role=target.role,
            series=self.name,
            seed=target.seed,
            n=n,
            d_model=found.d_model,
            tokens=tokens,
            flops=steps * batch_rows * found.flops.model,
            steps=steps,
            batch_rows=batch_rows,
            epochs=epochs,
            notes=tuple(_notes(limits, steps, tokens / n, epochs)) if target.role != Role.TUNE else (),
            words=(
                *self.words,
                f"model.n_layers={self.depth}",
                f"model.d_model={found.d_model}",
                f"steps={steps}",
                f"batch_rows={batch_rows}",
                f"seed={target.seed}",
            ),
        )

    def _count(self, width: int) -> Counted:
        run = self.run
        cfg = dataclasses.replace(run.model, n_layers=self.depth, d_model=width)
        model = meta_model(cfg, run.objective, self.prepared.vocab.size)
        return Counted(width, size_of(model), flops_of(model, run.objective, run.seq_len, run.batch_rows))


def _notes(limits: Limits, steps: int, ratio: float, epochs: float) -> list[str]:
    """Which limits a cell does not keep, each with its number."""
    said = []
    if steps < limits.least_steps:
        said.append(f"{steps} steps, fewer than {limits.least_steps}")
    if ratio < limits.least_tokens_per_param:
        said.append(f"{ratio:.1f} tokens a parameter, fewer than {limits.least_tokens_per_param:g}")
    if epochs > limits.most_epochs:
        said.append(f"{epochs:.2f} epochs, more than {limits.most_epochs:g}")
    return said
