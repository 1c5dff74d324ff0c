"""What memory the cells of a plan take: a step of three of them without data, and the rest follows from their width."""

from collections.abc import Sequence

import numpy as np

from llmtrain.batch import split_batch
from llmtrain.compose import run_from
from llmtrain.dry_run.rows import batch
from llmtrain.dry_run.steps import Plan, take
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.count import Series


def bytes_at_peak(series: Series, cell: Cell) -> int:
    """Of all tensors of a training step of one process, weights and moments among them."""
    run, vocab = run_from(cell.words), series.prepared.vocab
    run.trainer.configure()
    accumulate, micro_rows = split_batch(run)
    taken = take(
        Plan(
            run=run,
            model=run.sized(vocab.size),
            vocab_size=vocab.size,
            batch=batch(run, vocab, micro_rows),
            accumulate=accumulate,
            device="cuda" if run.trainer.on_gpu else "cpu",
            precision=run.trainer.chosen_precision(),
        )
    )
    return max(parts.total for parts in taken.peaks.values())


def expected_bytes(series: Series, cells: Sequence[Cell]) -> dict[str, int]:
    """Of each of ``cells``, of one series: weights go with the width's square, activations with the width."""
    by_width = {cell.d_model: cell for cell in cells}
    widths = sorted(by_width)
    chosen = sorted({widths[0], widths[len(widths) // 2], widths[-1]})
    taken = [bytes_at_peak(series, by_width[width]) for width in chosen]
    law = np.polyfit(chosen, taken, len(chosen) - 1)
    return {cell.id: round(float(np.polyval(law, cell.d_model))) for cell in cells}
