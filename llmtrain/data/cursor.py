"""Where a run is in the order of its rows."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Range = tuple[int, int]  # rows [first, end), by their numbers in the order of the run


class Cursor(NamedTuple):
    """How many rows were trained on, and which were gone past without being trained on: the state of the data.

    Positions from here on are counted in rows that are not gone past, so ranks, micro batches and the length of a run
    know nothing of those that are.
    """

    rows: int = 0
    passed: tuple[Range, ...] = ()  # in order, and apart from one another

    def row(self, n: int) -> int:
        """The number of the n-th row from here on."""
        k = self.rows + n
        for first, end in self.passed:
            if k < first:
                break
            k += end - first
        return k

    def ranges(self, positions: Iterable[int]) -> tuple[Range, ...]:
        """The rows at these positions from here on."""
        return union((k, k + 1) for k in map(self.row, positions))

    def next(self, n: int) -> tuple[Range, ...]:
        """The next ``n`` rows."""
        return self.ranges(range(n))

    def after(self, n: int) -> "Cursor":
        """With the next ``n`` rows trained on."""
        return self._replace(rows=self.rows + n)

    def past(self, ranges: Iterable[Range]) -> "Cursor":
        """The same number of rows trained on, with ``ranges`` gone past too."""
        return self._replace(passed=union((*self.passed, *ranges)))

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {"rows": self.rows, "passed": [list(rows) for rows in self.passed]}


START = Cursor()


def cursor_in(values: Mapping[str, Any]) -> Cursor:
    """The cursor whose ``values`` these hold among others; what was saved before rows could be gone past has none."""
    return Cursor(values["rows"], tuple((first, end) for first, end in values.get("passed", ())))


def union(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same rows as the fewest ranges, in order."""
    found: list[Range] = []
    for first, end in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((first, end))
    return tuple(found)
