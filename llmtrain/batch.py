"""How the rows of an optimiser step are taken: by how many ranks, and how many at a time."""

from llmtrain.errors import ConfigError
from llmtrain.run import Run


def split_batch(run: Run) -> tuple[int, int]:
    """(micro batches an optimiser step, rows a rank takes at a time).

    Raises ConfigError where the batch does not divide so, naming sizes that do.
    """
    share, rest = divmod(run.batch_rows, run.trainer.shares)
    if rest or not share:
        raise ConfigError(
            f"batch_rows={run.batch_rows} cannot be shared out to {run.trainer.shares} ranks: give a multiple of it"
        )
    if run.micro_rows == "auto" and run.trainer.world > 1:
        raise ConfigError(
            "micro_rows=auto is for one process, as ranks run out of memory apart: give a number, as in micro_rows=1"
        )
    micro = run.micro_rows if isinstance(run.micro_rows, int) else share
    if share % micro:
        fits = [n for n in range(1, share + 1) if share % n == 0]
        nearest = min(fits, key=lambda n: abs(n - micro))
        raise ConfigError(
            f"micro_rows={micro} does not divide the {share} rows that a rank takes a step: micro_rows={nearest} does"
        )
    if micro != share and not run.objective.accumulates:
        raise ConfigError(
            f"micro_rows={micro} would compare only so many rows with one another, and "
            f"{type(run.objective).__name__} compares the whole batch: leave it null, and set objective.chunk_rows "
            "where memory is short"
        )
    return share // micro, micro


def sizes_to_try(run: Run, micro_rows: int) -> list[int]:
    """``micro_rows``, and under ``micro_rows=auto`` its smaller divisors, each at most half of the one before."""
    sizes = [micro_rows]
    while run.micro_rows == "auto" and (fewer := halved(run, sizes[-1])):
        sizes.append(fewer)
    return sizes


def halved(run: Run, micro_rows: int) -> int | None:
    """The largest divisor that is at most half; None where rows cannot be taken apart any further."""
    if micro_rows == 1 or not run.objective.accumulates:
        return None
    return next(n for n in range(micro_rows // 2, 0, -1) if micro_rows % n == 0)
