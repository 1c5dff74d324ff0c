"""Which rank failed first, and what of its words to show: those of the others are only that it is gone."""

import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

from llmtrain.errors import EXIT_CODES, ConfigError, DataError, NumbersError, Retry

# from here on a rank speaks of its end; torch puts the rank before a traceback
LAST_WORDS = re.compile(
    r"(\[rank\d+\]: ?)?(Traceback \(most|error: |Fatal Python error|Stack \(most|process \d+ is stopped)"
)
OF_A_PEER = re.compile(
    r"closed by peer|reset by peer|connection refused|broken pipe|connectfullmesh|another rank failed|"
    r"rank \d+ failed: see|nccl|gloo|distbackenderror|distnetworkerror|diststoreerror",
    re.IGNORECASE,
)
SHOWN = 40  # lines

# these are the same at the next start
NOT_AGAIN = frozenset(kind.exit_code for kind in (ConfigError, DataError, NumbersError))
STOPPED = frozenset(EXIT_CODES.values())


class Failure(NamedTuple):
    """How a rank ended, or that it did not."""

    rank: int
    code: int | None  # None: it hangs
    tail: Sequence[str]  # the last lines that it wrote to stderr

    @property
    def of_a_peer(self) -> bool:
        """Whether it only says that another rank is gone."""
        said = [line for line in self.tail if line.strip()][-3:]
        return self.code is not None and self.code > 0 and any(OF_A_PEER.search(line) for line in said)

    @property
    def exit_code(self) -> int:
        """As documented, for the whole run."""
        return Retry.exit_code if self.code is None or self.code < 0 else self.code

    @property
    def may_be_retried(self) -> bool:
        return self.exit_code not in NOT_AGAIN | STOPPED

    def describe(self, step: int) -> str:
        where = f"at step {step}" if step else "before its first step"
        if self.code is None:
            return f"rank {self.rank} hangs {where}"
        if self.code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name} {where}"
        return f"rank {self.rank} ended with exit code {self.code} {where}"

    def last_words(self) -> list[str]:
        """From the first line that tells of its end; else some last lines, unless it was killed unawares."""
        lines = list(self.tail)
        begun = [i for i, line in enumerate(lines) if LAST_WORDS.match(line)]
        unawares = self.code in {-signal.SIGKILL, -signal.SIGTERM}
        told = lines[begun[0] :] if begun else [] if unawares else lines[-10:]
        if len(told) <= SHOWN:
            return told
        if "most recent call first" in told[0]:
            return [*told[:SHOWN], "..."]
        return [*told[:10], "...", *told[10 - SHOWN :]]


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The failure that made the others, of ``failures`` in the order in which they were seen."""
    return next((failure for failure in failures if not failure.of_a_peer), failures[0])
