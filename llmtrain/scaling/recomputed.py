"""When what was computed again is what was written down: numbers to ``RELATIVE``, all else exactly."""

import math
from typing import Any

# The same sums in another order, as other libraries and processors take them, move a prediction by 1e-15 to 1e-12,
# condition numbers and all; another optimum, or other runs, by far more. A prediction has four digits that matter.
RELATIVE = 1e-9


def same(written: Any, found: Any) -> bool:
    """Of plain data as JSON has them: dicts, lists, numbers, words and None."""
    if isinstance(written, dict) and isinstance(found, dict):
        return written.keys() == found.keys() and all(same(written[key], found[key]) for key in written)
    if isinstance(written, list) and isinstance(found, list):
        return len(written) == len(found) and all(map(same, written, found))
    if _is_number(written) and _is_number(found):
        return math.isclose(written, found, rel_tol=RELATIVE)
    return bool(written == found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
