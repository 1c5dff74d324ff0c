"""A whole study: every series fitted, judged and compared, and ``fit.json`` of it."""

from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from llmtrain.config import to_plain
from llmtrain.errors import DataError, NumbersError, UserError
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
    failed: dict[str, UserError] = field(default_factory=dict)  # by series, why it has no law

    def plain(self) -> dict[str, Any]:
        """One series as it is; several under ``series`` by name, with their comparisons and those that have no law."""
        columns = {"columns": to_plain(self.columns)}
        if len(self.series) == 1 and not self.failed:
            return self.series[0].plain() | columns
        by_name = {one.fit.points.about.series: one.plain() | columns for one in self.series}
        failed = {name: str(error) for name, error in self.failed.items()}
        return {"version": 1, "series": by_name, "comparisons": self.comparisons, "failed": failed}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, self.plain())


def study(series: list[Points], method: Method, columns: Columns | None = None) -> Study:
    """Each series fitted; one that cannot be takes none of the others with it.

    Raises what ``fit`` raises for the first, where none can be, and ConfigError for a method that no data could mend.
    """
    judged = []
    failed: dict[str, UserError] = {}
    for points in series:
        try:
            judged.append(judge(fit(points, method)))
        except (DataError, NumbersError) as error:
            failed[points.about.series] = error
    if not judged:
        name, why = next(iter(failed.items()))
        raise why if len(series) == 1 else type(why)(f"no series can be fitted; {name}: {why}")
    pairs = [compare(a.fit, b.fit) for a, b in combinations(judged, 2) if "c" in a.fit.points.x]
    return Study(judged, pairs, columns or Columns(), failed)


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
