"""Who is measured: every trained model, initial models of each series, and what needs no model."""

from collections.abc import Sequence
from pathlib import Path

from llmtrain.compare.cells import Entry
from llmtrain.compare.saved import Role, Whose
from llmtrain.compare.settings import Contest
from llmtrain.compose import run_from
from llmtrain.config import config
from llmtrain.data.prepare import prepare
from llmtrain.evaluation.subject import Subject
from llmtrain.loading import load_run
from llmtrain.nn.init import initialise


@config
class Contestant:
    id: str  # of its file
    role: Role
    cell: Entry  # of a baseline, one whose text and tokenizer are everyone's

    @property
    def whose(self) -> Whose:
        budget = round(self.cell.budget) if self.role == "trained" else None
        return Whose(series=self.cell.series, role=self.role, seed=self.cell.seed, budget=budget)

    def subject(self, folder: Path) -> Subject:
        """The model, on the CPU and ready to evaluate; ``folder`` is the comparison's."""
        return _trained(self.cell.run(folder)) if self.role == "trained" else _untrained(self.cell)


def contestants(contest: Contest, cells: Sequence[Entry], finished: Sequence[Entry]) -> list[Contestant]:
    """The trained models are those that have ``finished``; initial ones are of the size of the largest budget."""
    largest, seeds = max(contest.budgets), contest.seeds[: contest.untrained_seeds]
    initial = [cell for cell in cells if cell.budget == largest and cell.seed in seeds]
    return [
        Contestant(id="baselines", role="baseline", cell=cells[0]),
        *(Contestant(id=cell.id, role="trained", cell=cell) for cell in finished),
        *(Contestant(id=f"{c.series}-untrained-seed{c.seed}", role="untrained", cell=c) for c in initial),
    ]


def _trained(run: Path) -> Subject:
    loaded = load_run(run)
    return Subject(loaded.model, loaded.objective, loaded.tokenizer, loaded.config.seq_len)


def _untrained(cell: Entry) -> Subject:
    """What the run of ``cell`` began with."""
    run = run_from(cell.words)
    tokenizer = prepare(run.data, run.tokenizer).tokenizer
    model = run.build(tokenizer.vocab_size)
    initialise(model, n_layers=run.sized(tokenizer.vocab_size).shape[0], seed=run.init_seed)
    return Subject(model.eval(), run.objective, tokenizer, run.seq_len)
