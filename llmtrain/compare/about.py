"""What a comparison states of itself, from its plan and the records of its runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from llmtrain.callbacks.loggers.jsonl import read
from llmtrain.compare.cells import Entry
from llmtrain.compare.rates import read_tuning
from llmtrain.compare.saved import About, CellAbout, Overlap, SeriesAbout, TuningAbout
from llmtrain.compare.settings import Contest, SameFlops
from llmtrain.compose import compose
from llmtrain.data.corpus import Mix
from llmtrain.data.prepare import Prepared
from llmtrain.errors import DataError
from llmtrain.evaluation.base import HeldOutTexts
from llmtrain.record import RunRecord
from llmtrain.run import Run
from llmtrain.scaling.alike import SHARED, Shared, first_unlike
from llmtrain.sweep.cells import Role
from llmtrain.sweep.status import State, status_of


def about(
    contest: Contest,
    cells: Sequence[Entry],
    *,
    run: Run,
    prepared: Prepared,
    texts: HeldOutTexts,
    overlap: Mapping[str, Overlap],
    command: str,
) -> About:
    """Of cells that are done with. ``run`` is any of them before it is sized; they share data and tokenizer."""
    records = _records(contest, cells)
    first = next(iter(records.values()))
    return About(
        name=contest.name,
        matched=contest.match,
        size="flops_per_token" if isinstance(contest.size, SameFlops) else "optimum",
        tolerance=contest.tolerance,
        budgets=tuple(sorted(map(round, contest.budgets))),
        baseline=contest.baseline,
        series=tuple(_series(contest)),
        seeds=contest.seeds,
        cells=tuple(_cell(cell, records.get(cell.id), contest) for cell in cells),
        tuning=tuple(_tuning(contest)),
        seq_len=first.seq_len,
        vocab_size=prepared.vocab.size,
        precision=first.precision,
        corpus=_corpus(run, prepared),
        corpus_fingerprint=prepared.fingerprint,
        tokenizer_hash=prepared.tokenizer.hash,
        held_out_files=len({document.file for split in texts for document in split}),
        held_out_by=contest.held_out.texts.by,
        held_out_documents={name: len(split) for name, split in texts._asdict().items()},
        overlap=dict(overlap),
        device=first.device,
        git=first.git,
        versions=first.versions,
        command=command,
    )


def check_shared(contest: Contest, finished: Sequence[Entry]) -> None:
    """Raises DataError where ``finished`` runs were trained on unlike text or in unlike ways.

    The plan holds them to one, but a corpus, a Python or a machine can change between two starts.
    """
    require_alike(contest.folder, _records(contest, finished))


def require_alike(folder: Path, records: Mapping[str, RunRecord]) -> None:
    """Raises DataError for runs, by name, whose scores cannot be compared."""
    if (found := first_unlike(records, _SHARED)) is not None:
        raise DataError(
            f"{folder}: {found.first} and {found.other} have two {found.many} ({found.value} and {found.its}), so "
            f"their scores cannot be compared: something changed between two starts. Undo that, or delete the "
            f"folders of those that are out of date ({found.n_unlike} unlike the first) and give the same command again"
        )


# what runs of one fit share, and what a fit may mix but a comparison at equal cost may not
_SHARED = (
    *SHARED.values(),
    Shared("length of rows", "lengths of rows", lambda record: record.seq_len),
    Shared("precision", "precisions", lambda record: record.precision),
)


def _records(contest: Contest, cells: Sequence[Entry]) -> dict[str, RunRecord]:
    paths = {cell.id: cell.run(contest.folder) / "record.json" for cell in cells}
    return {name: RunRecord.read(path) for name, path in paths.items() if path.exists()}


def _series(contest: Contest) -> Iterator[SeriesAbout]:
    for name, words in contest.series.items():
        labels = compose([*contest.common, *words])["labels"]
        yield SeriesAbout(
            name=name, objective=labels["objective"], architecture=labels["architecture"], words=words
        )


def _cell(cell: Entry, record: RunRecord | None, contest: Contest) -> CellAbout:
    """What a run took; of one that the guard ended, as far as it came."""
    status = status_of(cell, contest.folder)
    state: Literal["finished", "diverged"] = "finished" if status.state is State.FINISHED else "diverged"
    rows = [row for row in read(cell.run(contest.folder) / "metrics.jsonl") if "seconds" in row]
    share = status.step / cell.steps
    return CellAbout(
        run=cell.id,
        series=cell.series,
        seed=cell.seed,
        budget=round(cell.budget),
        flops_model=record.flops_model if record else round(share * cell.flops),
        flops_per_token=cell.flops_per_token,
        n_total=cell.n_total,
        n_active=cell.n_active,
        raw_tokens=record.raw_tokens if record else round(share * cell.tokens),
        epochs=record.epochs if record else share * cell.epochs,
        steps=status.step,
        batch_rows=cell.batch_rows,
        lr=cell.lr or 0.0,
        train_seconds=float(rows[-1]["seconds"]) if rows else 0.0,
        status=state,
        loss=f"{record.score.value:.4f} {record.score.unit} ({record.score.name})" if record else "",
    )


def _tuning(contest: Contest) -> Iterator[TuningAbout]:
    for one in read_tuning(contest.folder):
        runs = (contest.folder / Role.TUNE.folder).glob(f"{one['trial']}-lr*/record.json")
        yield TuningAbout(
            series=one["series"],
            budget=round(one["budget"]),
            losses=one["tried"],
            best=one["lr"],
            inside=one["inside"],
            seconds=sum(RunRecord.read(path).wall_seconds for path in runs),
        )


def _corpus(run: Run, prepared: Prepared) -> str:
    corpora = run.data.components if isinstance(run.data, Mix) else {"corpus": run.data}
    said = [
        f"{type(corpus.source).__name__}, {prepared.report['parts'][name]['train']['bytes']:,} bytes to train on"
        for name, corpus in corpora.items()
    ]
    return "; ".join(said)
