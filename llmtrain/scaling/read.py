"""Points from whatever the user names: a CSV file, or a folder of runs."""

from dataclasses import replace
from pathlib import Path

from llmtrain.errors import ConfigError
from llmtrain.scaling.columns import Columns, read_csv
from llmtrain.scaling.points import Points
from llmtrain.scaling.runs import read_runs


def read(source: str | Path, columns: Columns | None = None) -> list[Points]:
    """The points of each series. A folder's columns have names of their own: see ``runs.read_runs``."""
    path, columns = Path(source), columns or Columns()
    if path.is_file():
        return read_csv(path, columns)
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such file or folder")
    if (path / "plan.json").is_file():  # of a sweep, what is fitted and not what was tried or held out
        path = path / "cells"
    for name in ("d", "run", "weight", "experts", "unique", "where"):
        if getattr(columns, name):
            raise ConfigError(
                f"{path} is a folder of runs, whose columns are known: --{name} is for CSV files"
            )
    given = {key: getattr(columns, key) for key in ("n", "c", "loss", "series")}
    return read_runs(path, **{key: value for key, value in given.items() if value is not None})


def the_series(found: list[Points], name: str | None) -> Points:
    """The only one, or the one of that name."""
    names = [points.about.series for points in found]
    if name is None and len(found) == 1:
        return found[0]
    if name not in names:
        raise ConfigError(f"give one of the series with --series: {', '.join(names)}")
    return replace(found[names.index(name)])
