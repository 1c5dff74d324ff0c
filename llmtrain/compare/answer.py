"""From a plan to its answer: learning rates, runs, everyone measured, and what the numbers show."""

from concurrent.futures import Executor

from llmtrain.callbacks.display import preparing
from llmtrain.compare.about import about, check_shared
from llmtrain.compare.alike import alike
from llmtrain.compare.contestants import contestants
from llmtrain.compare.plan import Plan, with_rates
from llmtrain.compare.publish import publish
from llmtrain.compare.rates import tuned
from llmtrain.compare.saved import NAME, Comparison, gathered
from llmtrain.compare.scoring import executor_of, score
from llmtrain.compare.settings import Contest
from llmtrain.compare.size import one_of
from llmtrain.compare.yardsticks import Yardsticks
from llmtrain.errors import NumbersError
from llmtrain.lock import RunLock
from llmtrain.sweep.pool import Pool
from llmtrain.sweep.runner import Runner
from llmtrain.sweep.status import State, status_of


def pool_of(contest: Contest) -> Pool:
    return contest.launch.pool(contest.folder)


def answer(
    contest: Contest,
    plan: Plan,
    *,
    command: str = "",
    pool: Pool | None = None,
    executor: Executor | None = None,
) -> None:
    """Run the plan to its end, from where an earlier start came to: what is there is not made again."""
    with RunLock(contest.folder):
        with preparing(show=False) as progress:
            baseline = one_of(contest, contest.baseline, progress)
        yardsticks = Yardsticks(contest)  # so that what cannot be asked is refused before training
        for name, why in yardsticks.left_out.items():
            print(f"{name} is left out: {why}")
        runner = Runner(contest.folder, pool or pool_of(contest))
        bests = tuned(plan, contest.rates, runner)
        cells = with_rates(plan, {name: best.lr for name, best in bests.items()})
        for name in (name for name, best in bests.items() if not best.inside):
            print(
                f"{name}: the best learning rate is the last that was tried, and a better one may lie beyond"
            )
        runner.run(cells)
        states = {cell.id: status_of(cell, contest.folder).state for cell in cells}
        finished = [cell for cell in cells if states[cell.id] is State.FINISHED]
        for cell in (cell for cell in cells if states[cell.id] is State.DIVERGED):
            print(f"{cell.id} diverged: it is listed, and not measured")
        if not finished:
            raise NumbersError(f"{contest.folder}: every run diverged; give lower learning rates")
        check_shared(contest, finished)
        those = contestants(contest, cells, finished)
        scores = score(contest, those, executor or executor_of(contest), yardsticks.asked)
        rows, items = gathered(pair for one in scores.values() for pair in one.measured)
        stated = about(
            contest,
            cells,
            run=baseline.run,
            prepared=baseline.prepared,
            texts=yardsticks.texts,
            overlap=yardsticks.overlap,
            command=command,
        )
        comparison = Comparison(about=stated, rows=rows, alike=alike(those, scores))
        print(publish(comparison, items, contest.folder, report=contest.report, wandb=contest.wandb))
        print(contest.folder / ("report.html" if contest.report else NAME))
