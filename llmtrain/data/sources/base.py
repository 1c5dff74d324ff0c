"""What a source of text is: documents in a fixed order, a hash of them, an account of what was left out."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llmtrain.config import config
from llmtrain.data.digests import Digests


class Document(NamedTuple):
    """One text; ``file:place`` names it in messages (a line, a row)."""

    text: str
    file: str
    place: str


class Tally:
    """What reading a source left out or mended, by reason, with the first place of each: nothing is silent."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def drop(self, reason: str, place: str, count: int = 1) -> None:
        """``count`` documents (or files) were left out; ``place`` is where the first of them is."""
        self._add(self.dropped, reason, place, count)

    def repair(self, reason: str, place: str, count: int = 1) -> None:
        """``count`` faults were mended in text that is kept."""
        self._add(self.repaired, reason, place, count)

    def _add(self, counter: Counter[str], reason: str, place: str, count: int) -> None:
        if count:
            counter[reason] += count
            self.first.setdefault(reason, place)

    def report(self) -> dict[str, dict[str, int] | dict[str, str]]:
        return {"dropped": dict(self.dropped), "repaired": dict(self.repaired), "first": dict(self.first)}

    def summary(self) -> str:
        return summary(self.report())


def summary(report: Mapping[str, Any]) -> str:
    """The counts of a ``Tally.report`` in one line, with where each first happened; empty if there are none."""
    counts = {**report["dropped"], **report["repaired"]}
    return ", ".join(f"{n} {reason} (first: {report['first'][reason]})" for reason, n in counts.items())


@config
class Source(ABC):
    """Where documents come from."""

    @abstractmethod
    def documents(self, tally: Tally) -> Iterator[Document]:
        """Stream the documents in an order that is the same every time; each is non-empty, valid Unicode.

        Raises DataError, naming file and place, for what cannot be read.
        """

    @abstractmethod
    def fingerprint(self, digests: Digests) -> str:
        """A hash of all that decides what ``documents`` yields; ``digests`` remembers files that did not change."""

    def inventory(self, digests: Digests) -> dict[str, list[int | str]]:
        """What lies on this machine of it, in the order of reading: by path, size in bytes and hash."""
        return {}

    def held_out(self, document: Document) -> bool | None:
        """Whether the source itself keeps ``document`` for validation; None leaves it to the hash of the text."""
        return None
