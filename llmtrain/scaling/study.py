"""A whole study: every series fitted, judged and compared, and ``fit.json`` of it."""

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from llmtrain.config import to_plain
from llmtrain.errors import UserError
from llmtrain.scaling.backtest import backtest, compare_forms
from llmtrain.scaling.cautions import Caution, cautions
from llmtrain.scaling.columns import Columns
from llmtrain.scaling.compare import compare
from llmtrain.scaling.fit import Fit, fit
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Points
from llmtrain.scaling.profile import Profile, profile_of_offset
from llmtrain.scaling.saved import NAME, plain_fit, write_json
from llmtrain.scaling.sensitivity import sensitivity


@dataclass(frozen=True)
class Judged:
    """A fit, and what speaks for or against it."""

    fit: Fit
    profile: Profile | None
    backtest: dict[str, Any]
    forms: list[dict[str, Any]]
    sensitivity: list[dict[str, Any]]
    cautions: list[Caution]

    def plain(self) -> dict[str, Any]:
        profile = self.profile and {
            "E": self.profile.values.tolist(),
            "objective": self.profile.objective.tolist(),
            "allowed": self.profile.allowed,
            "interval": [self.profile.lo, self.profile.hi],
        }
        return plain_fit(self.fit) | {
            "warnings": [asdict(c) for c in self.cautions],
            "backtest": self.backtest,
            "forms": self.forms,
            "sensitivity": self.sensitivity,
            "profile": profile,
        }


@dataclass(frozen=True)
class Study:
    series: list[Judged]
    comparisons: list[dict[str, Any]]
    columns: Columns

    def plain(self) -> dict[str, Any]:
        """One series as it is; several under ``series`` by name, with their comparisons."""
        columns = {"columns": to_plain(self.columns)}
        if len(self.series) == 1:
            return self.series[0].plain() | columns
        by_name = {one.fit.points.about.series: one.plain() | columns for one in self.series}
        return {"version": 1, "series": by_name, "comparisons": self.comparisons}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, self.plain())


def study(series: list[Points], method: Method, columns: Columns | None = None) -> Study:
    """Raises what ``fit`` raises, for the first series that cannot be fitted, and names it where there are others."""
    columns = columns or Columns()
    judged = []
    for points in series:
        try:
            judged.append(judge(fit(points, method)))
        except UserError as error:
            if len(series) == 1:
                raise
            raise type(error)(f"series {points.about.series}: {error}; {_without(points, columns)}") from None
    pairs = [compare(a.fit, b.fit) for a, b in combinations(judged, 2) if "c" in a.fit.points.x]
    return Study(judged, pairs, columns)


def _without(points: Points, columns: Columns) -> str:
    if points.about.table:
        return f"or fit the others with --where {columns.series}!={points.about.series}"
    return "or fit the others one by one with --series"


def judge(found: Fit) -> Judged:
    points, method = found.points, found.method
    profile = None
    if not found.lines:
        problem = found.law.problem(points.x)
        profile = profile_of_offset(problem, found.found, points.loss, points.weight, method.level)
    trials = sensitivity(found)
    return Judged(
        found,
        profile,
        backtest(found),
        [] if found.lines else compare_forms(points, method),
        trials,
        cautions(found, profile, trials),
    )
