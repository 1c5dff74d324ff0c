"""From a comparison to its plan, and how far it is."""

from llmtrain.callbacks.display import preparing
from llmtrain.compare.answer import pool_of
from llmtrain.compare.contestants import contestants
from llmtrain.compare.described import describe
from llmtrain.compare.plan import Plan, kept_plan, make_plan
from llmtrain.compare.scores import path_of
from llmtrain.compare.settings import Contest
from llmtrain.compare.size import series_of
from llmtrain.errors import ConfigError
from llmtrain.sweep.status import State, status_of, table


def planned(contest: Contest, *, startup: float) -> Plan:
    """The plan that is in the comparison's folder, or a new one, which is written there; printed either way.

    ``startup`` is what every process takes before its first step, in seconds.
    """
    plan = kept_plan(contest)
    if plan is None:
        with preparing(show=True) as progress:
            series = series_of(contest, progress)
        plan = make_plan(contest, series, workers=pool_of(contest).workers, startup=startup)
        plan.write(contest.folder)
    print(describe(plan, contest), flush=True)
    return plan


def status(contest: Contest) -> str:
    """How far each run is, and how many contestants are measured."""
    plan = kept_plan(contest)
    if plan is None:
        raise ConfigError(f"{contest.folder} has no plan yet: --dry-run makes one")
    found = [status_of(cell, contest.folder) for cell in plan.cells]
    finished = [cell for cell, one in zip(plan.cells, found, strict=True) if one.state is State.FINISHED]
    those = contestants(contest, plan.cells, finished)
    n_measured = sum(path_of(contest.folder, one.id).exists() for one in those)
    return (
        f"{table(found)}\n{n_measured} of {len(those)} that can be measured now have scores; a change of the "
        "yardsticks measures them anew"
    )
