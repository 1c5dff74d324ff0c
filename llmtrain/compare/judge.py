"""From the long table to what it shows: differences, who has learned, and ranks where the data allow some."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from llmtrain.compare.laws import laws
from llmtrain.compare.notes import in_all, joined
from llmtrain.compare.results import Difference, Reference, Result, Spread, Standing
from llmtrain.compare.saved import Comparison, Key, Row
from llmtrain.compare.statistics.estimate import LEAST_DOF, detectable, p_value
from llmtrain.compare.statistics.holm import holm
from llmtrain.compare.statistics.panel import Member, Panel, panel
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Items
from llmtrain.evaluation.proportions import LIKE_CHANCE

_NO_SEEDS = Spread(sd=None, dof=0, pooled=False, p_alike=None, test="")


def judge(comparison: Comparison, items: Mapping[Key, Items], *, level: float = 0.95) -> Comparison:
    """The comparison with its ``results``: every yardstick's test split, at every budget; and how errors grow less.

    Of a yardstick, the metric that comes first is the main one: it alone is tested and ranked.
    Raises DataError where models were not scored on the same items.
    """
    rows = [row for row in comparison.rows if row.split == "test"]
    main = {row.yardstick: row.metric for row in reversed(rows)}
    found = []
    for budget in comparison.about.budgets:
        for yardstick, metric in dict.fromkeys((row.yardstick, row.metric) for row in rows):
            mine = [
                row
                for row in rows
                if (row.yardstick, row.metric) == (yardstick, metric) and row.budget in (budget, None)
            ]
            if any(row.role == "trained" for row in mine):
                one = _Judged(comparison, mine, items, budget, metric == main[yardstick], level)
                found.append(one.result())
    judged = dataclasses.replace(comparison, results=tuple(found))
    return dataclasses.replace(judged, growth=tuple(laws(judged, level)))


class _Judged:
    """One metric of one yardstick at one budget."""

    def __init__(
        self,
        comparison: Comparison,
        rows: Sequence[Row],
        items: Mapping[Key, Items],
        budget: int,
        main: bool,
        level: float,
    ):
        self.about, self.rows, self.budget, self.main = comparison.about, rows, budget, main
        self.sign = 1 if rows[0].better == "higher" else -1
        members = list(_members(rows, items))
        order = [series.name for series in self.about.series]
        self.series = sorted(
            (m for m in members if m.role == "trained"), key=lambda member: order.index(member.name)
        )
        self.references = [member for member in members if member.role != "trained"]
        first = rows[0]
        try:
            self.panel: Panel = panel(members, level)
        except DataError as error:
            raise DataError(f"{first.yardstick}/{first.metric}: {error}") from None

    def result(self) -> Result:
        first = self.rows[0]
        trained = [row for row in self.rows if row.role == "trained"]
        return Result(
            yardstick=first.yardstick,
            metric=first.metric,
            split=first.split,
            kind=first.kind,
            budget=self.budget,
            main=self.main,
            better=first.better,
            summary=all(row.summary for row in self.rows),
            n=trained[0].n,
            groups=self.panel.groups,
            chance=next((row.chance for row in self.rows if row.chance is not None), None),
            ceiling=_one_of(row.ceiling for row in self.rows),
            spread=self.panel.spreads.get("trained", _NO_SEEDS),
            standings=tuple(self._standings()),
            references=tuple(
                Reference(name=one.name, role=one.role, estimate=self.panel.mean(one))
                for one in self.references
            ),
            differences=tuple(self._differences()),
        )

    def _differences(self) -> list[Difference]:
        base = next((one for one in self.series if one.name == self.about.baseline), None)
        if base is None:
            return []
        others = [one for one in self.series if one is not base]
        values = [self.panel.difference(one, base) for one in others]
        p = [self._p(one, base) for one in others]
        alpha = 1 - self.panel.level
        return [
            Difference(
                series=one.name,
                estimate=value,
                p=raw,
                p_holm=adjusted,
                shown=adjusted is not None and adjusted <= alpha,
                # at Holm's strictest step
                detectable=None if raw is None else detectable(value, alpha=alpha / len(others)),
                paired=self.panel.paired(one, base),
            )
            for one, value, raw, adjusted in zip(others, values, p, holm(p), strict=True)
        ]

    def _p(self, one: Member, other: Member) -> float | None:
        """None where the difference is not tested: a further metric, another meaning, too few seeds."""
        spread = self.panel.spreads["trained"]
        tested = self.main and self._common(one) and self._common(other)
        if not tested or not spread.pooled or spread.dof < LEAST_DOF:
            return None
        return p_value(self.panel.difference(one, other))

    def _standings(self) -> Iterator[Standing]:
        not_beaten = {one: self._not_beaten(one) for one in self.series}
        learned = {one: None if names is None else not names for one, names in not_beaten.items()}
        ranks = self._ranks([one for one in self.series if learned[one] is not False])
        for one in self.series:
            row = self._row(one)
            yield Standing(
                series=one.name,
                estimate=self.panel.mean(one),
                seeds=len(one.values),
                seed_sd=float(one.values.std(ddof=1)) if len(one.values) > 1 else None,
                learned=learned[one],
                not_beaten=tuple(not_beaten[one] or ()),
                ranks=ranks.get(one),
                common=row.common,
                note=self._note(one),
            )

    def _not_beaten(self, one: Member) -> list[str] | None:
        """The baselines that this series was not shown to beat, each at the level of the intervals.

        All must be beaten, so no adjustment for several is due. None where there is nothing to beat, and where that
        cannot be told for want of seeds or of items.
        """
        against = [other for other in self.references if other.role == "baseline" or other.name == one.name]
        if not against or self.rows[0].kind == "geometry":
            return None
        beats = [self._beats(one, other) for other in against]
        if None in beats:
            return None
        names = [other.role if other.role == "untrained" else other.name for other in against]
        return [name for name, beaten in zip(names, beats, strict=True) if not beaten]

    def _beats(self, one: Member, other: Member) -> bool | None:
        found = self.panel.difference(one, other)
        if found.lo is None or found.hi is None:
            return None
        return found.lo > 0 if self.sign > 0 else found.hi < 0

    def _ranks(self, learned: list[Member]) -> dict[Member, tuple[int, int]]:
        """Of each, the ranks that shown differences leave; every pair is tested, and Holm's adjustment is over all."""
        ranked = [one for one in learned if self._common(one)]
        pairs = [(one, other) for i, one in enumerate(ranked) for other in ranked[i + 1 :]]
        p = holm([self._p(one, other) for one, other in pairs])
        if self.rows[0].kind == "geometry" or any(value is None for value in p):
            return {}
        best, worst = dict.fromkeys(ranked, 1), dict.fromkeys(ranked, len(ranked))
        for (one, other), value in zip(pairs, p, strict=True):
            if value is not None and value <= 1 - self.panel.level:
                ahead = self.sign * (one.values.mean() - other.values.mean()) > 0
                winner, loser = (one, other) if ahead else (other, one)
                worst[winner] -= 1
                best[loser] += 1
        return {one: (best[one], worst[one]) for one in ranked}

    def _note(self, one: Member) -> str:
        """What is said of every seed; whether the mean is told from chance is asked of its own interval."""
        said = in_all([r.note for r in self.rows if (r.series, r.role) == (one.name, one.role)])
        return joined(note for note in said if note != LIKE_CHANCE)

    def _common(self, one: Member) -> bool:
        return self._row(one).common

    def _row(self, one: Member) -> Row:
        return next(row for row in self.rows if (row.series, row.role) == (one.name, one.role))


def _item_se(rows: Sequence[Row]) -> float | None:
    """Of one seed. Geometry describes these texts, and no others: it has none."""
    errors = [row.item_se for row in rows if row.item_se is not None]
    if rows[0].kind == "geometry":
        return 0.0
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) == len(rows) else None


def _one_of(values: Iterable[float | None]) -> float | None:
    """What all have that have any; none where they differ, as the most that a rank can be does between widths."""
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def _members(rows: Sequence[Row], items: Mapping[Key, Items]) -> Iterator[Member]:
    for name, role in dict.fromkeys((row.series, row.role) for row in rows):
        mine = [row for row in rows if (row.series, row.role) == (name, role)]
        mine.sort(key=lambda row: -1 if row.seed is None else row.seed)
        known = [items[row.key] for row in mine if row.key in items]
        yield Member(
            name=name,
            role=role,
            values=np.array([row.value for row in mine]),
            items=tuple(known) if len(known) == len(mine) else None,
            item_se=_item_se(mine),
            groups=mine[0].groups or mine[0].n,
        )
