"""The end of a sweep: the law of its records, a prediction that is sealed, and the runs that check it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from llmtrain.errors import ConfigError, DataError, NumbersError, UserError
from llmtrain.run_folder import write_text
from llmtrain.scaling import Study, predict, read, read_fit, study, verify
from llmtrain.scaling.predict import NAME as PREDICTION
from llmtrain.scaling.predict import Prediction
from llmtrain.scaling.read import the_series
from llmtrain.scaling.recomputed import same
from llmtrain.scaling.saved import Saved, as_json, write_json
from llmtrain.scaling.summary import between
from llmtrain.scaling.verify import NAME as VERIFIED
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.conduct import Conductor, with_rates
from llmtrain.sweep.count import Series
from llmtrain.sweep.edges import check_edges
from llmtrain.sweep.settings import HeldOut, Sweep
from llmtrain.sweep.status import State, status_of
from llmtrain.sweep.tuning import Rule

HELD_OUT = "held_out.json"  # the cells that were predicted
FIT = "fit"  # of the sweep's folder; each series has a folder in it


class Fitted(NamedTuple):
    folders: dict[str, Path]  # of the fit.json of each series that has one
    studies: dict[Path, Study]  # by folder; of several series also all together
    failed: dict[str, UserError]  # why the others have none


def fitted(sweep: Sweep, *, force: bool) -> Fitted:
    """The fit of each series, made from the records of the cells as the sweep's config says, and written.

    A series that cannot be fitted takes none of the others with it. Raises ConfigError where a best learning rate lies
    on the edge of those tried, unless ``force`` says that this is known.
    """
    check_edges(sweep.folder, force=force)
    found = read(sweep.folder / Role.CELL.folder)
    finished = {points.about.series for points in found}
    folders: dict[str, Path] = {}
    studies: dict[Path, Study] = {}
    failed: dict[str, UserError] = {}
    for name in sweep.series:
        folder = sweep.folder / FIT / name
        if name not in finished:
            failed[name] = NumbersError(f"series {name}: none of its cells finished, so it has no law")
            continue
        try:
            studies[folder] = study([the_series(found, name)], sweep.fit)
            folders[name] = folder
        except (DataError, NumbersError) as error:
            failed[name] = error
    if len(folders) > 1:
        studies[sweep.folder / FIT] = study([the_series(found, name) for name in folders], sweep.fit)
    for folder, one in studies.items():
        one.write(folder)
    return Fitted(folders, studies, failed)


def reported(sweep: Sweep, studies: Mapping[Path, Study]) -> None:
    """Figures and ``report.html`` beside each fit, with the prediction and its check where they are there."""
    if not sweep.report:
        return
    from llmtrain.scaling.report import NAME, write_report  # imports matplotlib

    for folder, one in studies.items():
        write_report(one, folder)
        print(folder / NAME)


def predicted(
    sweep: Sweep,
    held: HeldOut,
    series: Mapping[str, Series],
    rules: Mapping[str, Rule | None],
    fits: Mapping[str, Path],
) -> tuple[list[Cell], dict[str, UserError]]:
    """The held-out cells at each series' best size, once their losses are written down in ``prediction.json``.

    And by series, why one has no prediction: it takes none of the others with it.
    """
    cells: list[Cell] = []
    failed: dict[str, UserError] = {}
    for name, folder in fits.items():
        saved = read_fit(folder)
        try:
            n = held.n or predict(saved, flops=held.flops).n
            assert n is not None, "a form that sets no size is asked only with held_out.n"
            mine = [
                sweep.alone(series[name].cell(target, sweep.limits))
                for target in sweep.held_out_targets(name, n)
            ]
            found = prediction_of(saved, mine[0]).plain
        except NumbersError as error:
            failed[name] = error
            continue
        sealed, digest = _sealed(folder / PREDICTION, found | {"cells": [cell.id for cell in mine]})
        ends = "no interval of a run" if sealed["run"]["lo"] is None else f"a run in {between(sealed['run'])}"
        print(
            f"{name}: N {mine[0].n:,}, D {mine[0].tokens:,}: {sealed['loss']:.4f} predicted, {ends}; sha256 of "
            f"{PREDICTION} {digest}"
        )
        cells += mine
    cells = with_rates(cells, rules)
    text = TypeAdapter(tuple[Cell, ...]).dump_json(tuple(cells), indent=1).decode()
    write_text(sweep.folder / HELD_OUT, text + "\n")
    return cells, failed


def prediction_of(saved: Saved, cell: Cell) -> Prediction:
    """Of a run as it will be; a law of compute alone knows no more of it than its FLOPs."""
    if saved.lines or saved.law.form.needs == ("c",):
        return predict(saved, flops=float(cell.flops))
    fresh = cell.tokens / max(1.0, cell.epochs)
    unique = {"unique": fresh} if "unique" in saved.law.form.needs else {}
    return predict(saved, n=float(cell.n), d=float(cell.tokens), **unique)


def held_out_cells(folder: Path) -> tuple[Cell, ...]:
    """Those of the sweep in ``folder``; none before their losses are predicted."""
    path = folder / HELD_OUT
    return TypeAdapter(tuple[Cell, ...]).validate_json(path.read_bytes()) if path.exists() else ()


def _sealed(path: Path, found: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The prediction in ``path`` and its SHA-256; ``found``, where none was sealed yet.

    Raises ConfigError where another one was: what was sealed stays sealed, and holds for the law that it was made of.
    """
    if not path.exists():
        write_json(path, found)
    text = path.read_bytes()
    sealed: dict[str, Any] = json.loads(text)
    again = json.loads(as_json(found))
    if not all(same(sealed[key], again[key]) for key in ("cells", "loss", "run")):
        raise ConfigError(
            f"{path} predicts {sealed['loss']:.4f} for {', '.join(sealed['cells'])}, and the records now make "
            f"{found['loss']:.4f} for {', '.join(found['cells'])}: take another name (sweep.name=...)"
        )
    return sealed, hashlib.sha256(text).hexdigest()


def verified(
    sweep: Sweep, held: HeldOut, fits: Mapping[str, Path], cells: Sequence[Cell]
) -> dict[str, UserError]:
    """Hold the prediction against the runs: ``verify.json`` beside each fit, and what it says.

    By series, why one is not verified: a run without a result leaves its prediction open, whatever the others show.
    """
    failed: dict[str, UserError] = {}
    for name, folder in fits.items():
        states = {c.id: status_of(c, sweep.folder).state for c in cells if c.series == name}
        lost = {run: state.value for run, state in states.items() if state is not State.FINISHED}
        if lost:
            said = ", ".join(f"{run} ({state})" for run, state in lost.items())
            failed[name] = NumbersError(
                f"series {name}: {len(lost)} of {len(states)} held-out runs have no result, so its prediction is not "
                f"verified: {said}"
            )
        if len(lost) == len(states):
            (folder / VERIFIED).unlink(missing_ok=True)  # of an earlier start
            continue
        found = verify(folder, the_series(read(sweep.folder / Role.HELD_OUT.folder), name)).plain
        found["without_result"] = lost
        found["held"] = holds(found, held) and not lost
        write_json(folder / VERIFIED, found)
        _print_verified(name, found, held)
    return failed


def _print_verified(name: str, found: Mapping[str, Any], held: HeldOut) -> None:
    for run in found["runs"]:
        interval = run["run_interval"]
        place = {True: "inside", False: "outside", None: "no interval"}[interval["inside"]]
        width = "" if interval["inside"] is None else f" ±{interval['half_width']:.2%}"
        print(
            f"{run['run']}: {run['observed']:.4f} observed, {run['predicted']:.4f} predicted, error "
            f"{run['error']:+.2%}, {place}{width}"
        )
    for rival, error in found["baselines"].items():
        print(
            f"  mean error of {rival.replace('_', ' ')} {error:.2%}, of the law {found['mean_absolute_error']:.2%}"
        )
    for run, state in found["without_result"].items():
        print(f"{run}: no result ({state})")
    unjudged = found["without_result"] or any(run["run_interval"]["inside"] is None for run in found["runs"])
    said = "holds" if found["held"] else "is open" if unjudged else "MISSED"
    print(f"{name}: the prediction {said} (to hold: at most {held.most_error:.0%} off, and inside)")


def holds(found: Mapping[str, Any], held: HeldOut) -> bool:
    """Whether every run is near enough, and in an interval that is narrow enough to say something."""
    return all(
        abs(run["error"]) <= held.most_error
        and run["run_interval"]["inside"]
        and run["run_interval"]["half_width"] <= held.most_half_width
        for run in found["runs"]
    )


def check_branches(cells: Sequence[Cell], conductor: Conductor) -> None:
    """Print how far a branch of a trunk is from a fresh run of its length."""
    for fresh in (cell for cell in cells if cell.role is Role.CHECK):
        (branch,) = (
            c
            for c in cells
            if c.role is Role.BRANCH
            and (c.series, c.n, c.seed, c.steps) == (fresh.series, fresh.n, fresh.seed, fresh.steps)
        )
        ours, its = conductor.loss(branch), conductor.loss(fresh)
        if not (math.isfinite(ours) and math.isfinite(its)):
            print(f"{branch.id}: not checked against a fresh run, since one of the two has no result")
            continue
        print(f"{branch.id}: {ours:.4f}, a fresh run of its length {its:.4f} ({ours / its - 1:+.2%})")
