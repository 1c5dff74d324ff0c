"""A plan as text: what is trained, what it costs, and what was settled before."""

from collections.abc import Iterator

from llmtrain.callbacks.display import duration
from llmtrain.sweep.cells import Role
from llmtrain.sweep.plan import Plan
from llmtrain.sweep.settings import Sweep

MEMORY = "MB: 1e6 bytes of tensors at the peak of a step; Python and its libraries come on top"


def describe(plan: Plan, sweep: Sweep) -> str:
    """A table of the cells, what all else adds, and the time of all."""
    head = f"{'cell':<44} {'N':>11} {'D':>13} {'FLOPs':>9} {'steps':>7} {'batch':>5} {'D/N':>6} {'MB':>7} {'time':>7}"
    lines = [f"N: {plan.convention}", MEMORY, "", head]
    for cell in sorted(plan.cells, key=lambda c: (c.series, c.flops, c.n, c.seed)):
        time = "" if cell.seconds is None else duration(cell.seconds)
        memory = "" if cell.memory is None else f"{cell.memory / 1e6:,.1f}"
        lines.append(
            f"{cell.id:<44} {cell.n:>11,} {cell.tokens:>13,} {cell.flops:>9.2e} {cell.steps:>7,} {cell.batch_rows:>5} "
            f"{cell.tokens / cell.n:>6.1f} {memory:>7} {time:>7}"
            + "".join(f"  ! {note}" for note in cell.notes)
        )
    trained = round(sum(c.own_share * c.flops for c in plan.cells))
    lines += ["", f"{len(plan.cells)} cells, {trained:.3g} model FLOPs"]
    lines += [*_settled(plan), *_trials(plan, sweep, trained)]
    if plan.tuned:
        cost = sweep.tuning.rates * sum(c.flops for c in plan.tuned)
        lines.append(
            f"tuning: {sweep.tuning.rates} learning rates at {len(plan.tuned)} corners, at least "
            f"{len(plan.tuned) * sweep.tuning.rates} runs, {cost:.3g} FLOPs ({cost / trained:.0%} of the cells')"
        )
    if sweep.held_out:
        n_runs = len(sweep.held_out.seeds) * len(sweep.series)
        lines.append(
            f"held out: {n_runs} runs of {sweep.held_out.flops:.3g} FLOPs, predicted before they are trained"
        )
    if plan.seconds is not None:
        lines.append(f"expected time: {duration(plan.seconds)} with {plan.workers} at a time")
    return "\n".join(lines)


def _settled(plan: Plan) -> Iterator[str]:
    if plan.precision_seconds:
        chosen = next(
            w for words in plan.settled.values() for w in words if w.startswith("trainer.precision=")
        )
        took = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in plan.precision_seconds.items())
        yield f"precision of all cells: {chosen} (a step of the middle cell: {took})"
    if plan.batch is not None:
        rows = ", ".join(
            f"{one.batch_rows}" for one in {c.series: c for c in plan.batches[plan.batch]}.values()
        )
        yield f"batch of all cells: {rows} rows, {plan.batch} times the config's, by trials of the middle cell"


def _trials(plan: Plan, sweep: Sweep, trained: int) -> Iterator[str]:
    """What runs before the grid, with its cost."""
    if plan.batches and plan.batch is None:
        cells = [c for trial in plan.batches.values() for c in trial]
        rows = " and ".join(str(n) for n in sorted({c.batch_rows for c in cells}))
        cost = sum(c.flops for c in cells)
        yield (
            f"batch test: the middle cell at {rows} rows, {len(cells)} runs, {cost:.3g} FLOPs "
            f"({cost / trained:.0%} of the cells'); where a larger one is taken, the cells have fewer steps"
        )
    if sweep.batch_test and not plan.batches:
        yield (
            f"batch test: none, since twice the batch leaves a cell fewer than {sweep.limits.least_steps} steps "
            "(sweep.limits.least_steps)"
        )
    if plan.replicates:
        more = [c for c in plan.replicates if c.role is Role.TUNE]
        yield (
            f"noise: {len(plan.replicates)} replicates of the middle cell, {len(more)} of them beside the grid, "
            f"{sum(c.flops for c in more):.3g} FLOPs"
        )
