"""A plan, and how far it is, as a person reads them."""

from collections.abc import Sequence

from llmtrain.callbacks.display import duration
from llmtrain.compare.plan import Plan, said_of_match
from llmtrain.compare.settings import UNITS, Contest


def describe(plan: Plan, contest: Contest) -> str:
    """One line for the runs of a series at a budget, what tuning adds, and the time of all training."""
    head = (
        "series",
        "width",
        "N",
        "N active",
        "FLOPs/token",
        "batch",
        "steps",
        "tokens",
        UNITS[contest.match],
    )
    rows = []
    first = [c for c in plan.cells if c.seed == contest.seeds[0]]
    for c in first:
        sizes = (str(c.d_model), f"{c.n_total:,}", f"{c.n_active:,}", f"{c.flops_per_token:,.0f}")
        length = (str(c.batch_rows), f"{c.steps:,}", f"{c.tokens:,}", f"{c.matched:.4g}")
        time = "" if c.seconds is None else duration(c.seconds)
        rows.append((c.series, *sizes, *length, time, *(f"! {note}" for note in c.notes)))
    lines = [
        f"equal for all: {said_of_match(contest)}; the tokenizer, and the order of the text for each seed",
        "",
        *_aligned([(*head, "time"), *rows]),
        "",
        f"{len(plan.cells)} runs: {len(contest.series)} series, {len(contest.seeds)} seeds, "
        f"{len(contest.budgets)} budgets; {sum(c.flops for c in plan.cells):.3g} model FLOPs",
    ]
    if plan.trials:
        rates = contest.rates
        flops = rates.rates * sum(t.flops for t in plan.trials)
        lines.append(
            f"learning rates: {rates.rates} for every series around {rates.first:g} by a factor of {rates.factor:g}, "
            f"up to {rates.widen} more for all, each in one run of {rates.share:.1%} of the budget; {flops:.3g} FLOPs"
        )
    held = contest.held_out
    lines.append(
        f"held out: {held.texts.share:.0%} of the {held.texts.by}s, of which {1 - held.dev - held.test:.0%} train "
        f"probes, {held.dev:.0%} choose and {held.test:.0%} test"
    )
    if plan.seconds is not None:
        lines.append(f"expected time of training: {duration(plan.seconds)} with {plan.workers} at a time")
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right; what comes after the head's last stays as it is."""
    n = len(rows[0])
    widths = [max(len(row[k]) for row in rows) for k in range(n)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(row[k].rjust(widths[k]) for k in range(1, n)), *row[n:]]
        ).rstrip()
        for row in rows
    ]
