"""Where a start begins: at its own newest checkpoint, at another run's, or at nothing."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from llmtrain.checkpoint import find, load, newest
from llmtrain.data.cursor import START, Cursor, cursor_in
from llmtrain.data.digests import changes
from llmtrain.data.prepare import Inventories
from llmtrain.errors import ConfigError, DataError
from llmtrain.run import Run
from llmtrain.run_folder import read_config, read_files

SHOWN = 3  # files that differ, in one line

log = logging.getLogger(__name__)


class Origin(NamedTuple):
    path: Path  # a checkpoint
    values: dict[str, Any]  # saved with it
    parent: str | None  # RUN@STEP, where it is another run's
    full: bool  # weights, optimiser and cursor; else weights alone
    branches: bool  # whether the checkpoint is another run's

    @property
    def step(self) -> int:
        return int(self.values["step"]) if self.full else 0

    @property
    def cursor(self) -> Cursor:
        return cursor_in(self.values) if self.full else START


def origin_of(
    run: Run, identity: dict[str, str], files: Inventories, *, rank: int, horizon: int
) -> Origin | None:
    """The checkpoint that this start goes on from.

    ``identity`` names tokenizer, corpus and rows as they are now, ``files`` what the corpus was read from. Raises
    ConfigError or DataError where they are not those of the checkpoint, or where it is already past the run's length.
    """
    # only the first rank holds the run's lock, so only it may set damaged checkpoints aside
    path = find(run.folder) if rank == 0 else newest(run.folder)
    if path is not None:
        values = _values(path)
        found = Origin(path, values, values["parent"], full=True, branches=False)
        _check_data(found, identity, files, way_out="give another name, or restore the data")
        if found.step > horizon:
            raise ConfigError(
                f"{run.folder} has done {found.step} steps, more than the {horizon} of this config: give a longer "
                "length, or another name"
            )
        if found.values["horizon"] != horizon:
            log.info("the run's length is now %d steps, no longer %d", horizon, found.values["horizon"])
        return found
    if run.init_from is None or public_folder(run) is not None:
        return None
    return _of_another(run, run.init_from, identity, files, horizon)


def public_folder(run: Run) -> Path | None:
    """The Hugging Face folder that ``init_from`` names, where it does."""
    folder = Path(run.init_from or "")
    return folder if run.init_from and (folder / "config.json").is_file() else None


def _of_another(run: Run, given: str, identity: dict[str, str], files: Inventories, horizon: int) -> Origin:
    folder, step = _named(run, given)
    path = newest(folder) if step is None else find(folder, step=step)
    if path is None:
        raise ConfigError(f"init_from={given}: {folder} has no checkpoint yet")
    values = _values(path)
    found = Origin(
        path, values, f"{folder.name}@{values['step']}", full=run.init_state == "full", branches=True
    )
    if found.full:
        _check_data(found, identity, files, way_out="take over what the other run has, or init_state=weights")
        if found.step >= horizon:
            raise ConfigError(
                f"init_from={given} is at step {found.step}, and this run ends at {horizon}: give a longer length "
                "(steps count from the other run's first), or init_state=weights"
            )
    elif values["tokenizer"] != identity["tokenizer"]:
        raise ConfigError(
            f"init_from={given} has another tokenizer, so its weights mean other tokens: use its tokenizer"
        )
    return found


def _named(run: Run, given: str) -> tuple[Path, int | None]:
    name, _, at = given.partition("@")
    if at and not at.isdecimal():
        raise ConfigError(f"init_from={given}: the part after @ must be a step, as in {name}@1000")
    folder = Path(name) if "/" in name else run.runs / name
    read_config(folder)  # says what there is, where this is no run
    return folder, int(at) if at else None


def _values(path: Path) -> dict[str, Any]:
    return load(path, expect={}).values


def _check_data(found: Origin, identity: dict[str, str], files: Inventories, *, way_out: str) -> None:
    for what in identity:
        saved, now = found.values[what], identity[what]
        if saved != now:
            changed = _changes(read_files(found.path.parents[1]), files) if what == "corpus" else ""
            raise DataError(
                f"{found.path} was made with another {what} ({changed or f'{saved[:12]}, now {now[:12]}'}): {way_out}"
            )


def _changes(before: Inventories, now: Inventories) -> str:
    """In words, which files of the parts that both have are not what they were."""
    said = [change for part in before if part in now for change in changes(before[part], now[part])]
    return "; ".join(said[:SHOWN]) + (f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else "")
