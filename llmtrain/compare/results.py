"""The schema of what the statistics say: for each yardstick, who stands where, and what differs from the baseline."""

from typing import Literal

from llmtrain.config import config

Role = Literal["trained", "untrained", "baseline"]


@config
class Estimate:
    """A mean over seeds; the interval is of seeds and items together, none where either is unknown."""

    value: float
    se: float | None = None
    lo: float | None = None
    hi: float | None = None
    dof: float | None = None  # of se


@config
class Spread:
    """How far seeds of one series lie apart, and whether that was pooled over series."""

    sd: float | None  # of one seed; none where series differ in it, and each has its own
    dof: int
    pooled: bool
    p_alike: float | None  # of the test that the series are alike in it; none where it cannot be made
    test: str


@config
class Standing:
    """Of one series on one yardstick."""

    series: str
    estimate: Estimate
    seeds: int
    seed_sd: float | None
    learned: bool | None  # better than every baseline; none where there is no baseline to hold it against
    not_beaten: tuple[str, ...] = ()  # the baselines that it was not shown to beat
    ranks: tuple[int, int] | None = None  # the best and the worst rank that the data allow; none: not ranked
    common: bool = True  # whether its value means the same as that of the others; if not, it is not ranked
    note: str = ""  # what a reader must know of it: "a bound, out of distribution"


@config
class Reference:
    """Of one baseline, or of the untrained model of one series."""

    name: str  # of the baseline, or of the series
    role: Role
    estimate: Estimate


@config
class Difference:
    """A series less the baseline series, in the yardstick's unit."""

    series: str
    estimate: Estimate
    p: float | None  # of no difference; none under 5 degrees of freedom
    p_holm: float | None  # adjusted for all differences of this yardstick and budget
    shown: bool  # p_holm is at most 1 - level
    detectable: float | None  # the smallest that is shown with a probability of .8; none where there is no p
    paired: bool  # whether items were paired; where a value has no items, their errors add up


@config
class Multiplier:
    """How many times the baseline series' compute a series takes, where both come to one error."""

    error: float  # the share of the way from ceiling to chance
    value: float
    lo: float
    hi: float


@config
class Growth:
    """A power law of a yardstick's error in compute: error = E + A C^-alpha; on 6 budgets or more."""

    yardstick: str
    metric: str
    series: str
    exponent: Estimate
    multipliers: tuple[Multiplier, ...]  # none of the baseline series, and none where the laws do not meet


@config
class Result:
    """What the data say of one yardstick at one budget."""

    yardstick: str
    metric: str
    split: str
    kind: str
    budget: int  # model FLOPs of a cell of the baseline series
    main: (
        bool  # whether p values, ranks and the table are of this metric; of others there are intervals alone
    )
    better: Literal["higher", "lower"]
    summary: bool
    n: int  # items
    groups: int | None  # of items, that were resampled; none where values have no items
    chance: float | None
    ceiling: float | None
    spread: Spread
    standings: tuple[Standing, ...]  # in the order of the series
    references: tuple[Reference, ...]
    differences: tuple[Difference, ...]

    @property
    def part(self) -> bool:
        """Whether it is a part of another number, as one paradigm of minimal pairs is."""
        return not self.summary and "/" in self.yardstick
