"""One yardstick at one budget as numbers: each series' seeds, and how far other items would have moved them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from llmtrain.compare.results import Estimate, Role, Spread
from llmtrain.compare.statistics.estimate import Part, estimate
from llmtrain.compare.statistics.items import Shared, covariance_over_groups, item_part, shared
from llmtrain.compare.statistics.seeds import seed_parts, spread_of
from llmtrain.evaluation.base import Items


@dataclass(frozen=True, eq=False)
class Member:
    """A series, an untrained architecture or a baseline: a value for each seed."""

    name: str
    role: Role
    values: Float[np.ndarray, " K"]
    items: tuple[Items, ...] | None  # of each seed
    item_se: float | None  # of a value, where there are no items
    groups: int  # of items that are not independent


@dataclass(frozen=True)
class Panel:
    places: dict[Member, Int[np.ndarray, " K"]]  # in the covariance, of each seed
    covariance: Float[np.ndarray, "M M"] | None  # over groups of items, of members that have some
    groups: int | None
    spreads: dict[Role, Spread]  # by role: what is untrained scatters otherwise than what is trained
    level: float

    def mean(self, one: Member) -> Estimate:
        return self._estimate(float(one.values.mean()), [one], self._item_part(one))

    def difference(self, one: Member, other: Member) -> Estimate:
        """The first less the second."""
        value = float(one.values.mean() - other.values.mean())
        return self._estimate(value, [one, other], self._item_part_of_difference(one, other))

    def paired(self, *members: Member) -> bool:
        """Whether these were scored on items that are known."""
        return self.covariance is not None and all(member.items is not None for member in members)

    def _estimate(self, value: float, members: list[Member], items: Part | None) -> Estimate:
        seeds = [self._seeds(members, role) for role in dict.fromkeys(member.role for member in members)]
        known = [part for parts in seeds for part in parts or ()]
        if items is None or any(parts is None for parts in seeds) or not (known or items.variance):
            return estimate(value, None, self.level)
        return estimate(value, [items, *known], self.level)

    def _seeds(self, members: list[Member], role: Role) -> list[Part] | None:
        """What seeds add to the variance; a baseline without them, or one untrained model, is what it is."""
        mine = [member.values for member in members if member.role == role]
        if role != "trained":
            mine = [values for values in mine if len(values) > 1]
        return seed_parts(self.spreads[role], *mine) if mine else []

    def _item_part(self, one: Member) -> Part | None:
        if self.paired(one):
            return self._over_groups(self._shared(one, one), one)
        if one.items is None and one.item_se is not None and one.groups > 1:
            return Part(one.item_se**2, one.groups - 1)
        return None

    def _item_part_of_difference(self, one: Member, other: Member) -> Part | None:
        """Of pairs, where items are known; else errors of the two add up, which is too much rather than too little."""
        if self.paired(one, other):
            own, its, both = self._shared(one, one), self._shared(other, other), self._shared(one, other)
            left = Shared(
                own.lasting + its.lasting - 2 * both.lasting, own.total + its.total - 2 * both.total
            )
            return self._over_groups(left, one, other)
        first, second = self._item_part(one), self._item_part(other)
        if first is None or second is None:
            return None
        return Part(first.variance + second.variance, min(first.dof, second.dof))

    def _over_groups(self, found: Shared, *members: Member) -> Part:
        assert self.groups is not None
        return item_part(found, self.groups, max(len(member.values) for member in members))

    def _shared(self, one: Member, other: Member) -> Shared:
        assert self.covariance is not None
        return shared(self.covariance[np.ix_(self.places[one], self.places[other])], same=one is other)


def panel(members: Sequence[Member], level: float) -> Panel:
    scored = [items for member in members for items in member.items or ()]
    covariance, groups = covariance_over_groups(scored) if scored else (None, None)
    ends = np.cumsum([len(member.items or ()) for member in members])
    places = {
        member: np.arange(end - len(member.items), end)
        for member, end in zip(members, ends, strict=True)
        if member.items is not None
    }
    roles = dict.fromkeys(member.role for member in members)
    spreads = {role: spread_of([m.values for m in members if m.role == role]) for role in roles}
    return Panel(places, covariance, groups, spreads, level)
