"""What features are asked: labels of texts and of their parts, partners to be found, similarities graded by people."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

MIN_ITEMS = 20  # of a split; a task with fewer says nothing and is left out


class Input(NamedTuple):
    """A text, or a part of it that is to be seen in its context."""

    text: str
    span: tuple[int, int] | None = None  # characters


class Example(NamedTuple):
    """A text, or a part of one, with its label."""

    id: str
    group: str  # resampled as one
    input: Input
    label: str
    type: str  # what a control label is drawn for: the word itself, or the first word of a text


class Pair(NamedTuple):
    id: str
    group: str
    first: str
    second: str  # what is to be found, or graded against the first
    score: float | None = None  # of similarity


class Classification(NamedTuple):
    name: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    summary: bool = True
    note: str = ""


class Retrieval(NamedTuple):
    """The partner of each first text among the second texts of all pairs."""

    name: str
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]
    summary: bool = True
    note: str = ""


class Similarity(NamedTuple):
    name: str
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]
    summary: bool = True
    note: str = ""


Task = Classification | Retrieval | Similarity
One = TypeVar("One")


class Tasks(NamedTuple):
    """All that features are asked in a comparison, the same for every model."""

    tasks: tuple[Task, ...]
    windows: tuple[str, ...]  # running text, on which representations are compared with one another
    left_out: dict[str, str]  # by name of a yardstick: why there is none
    overlap: dict[str, tuple[int, int]]  # by name: test items that share text with training text, of how many


def texts_of(task: Task) -> Iterator[str]:
    return (text for items in splits(task).values() for item in items for text in _texts_in(item))


def _texts_in(item: Example | Pair) -> tuple[str, ...]:
    return (item.input.text,) if isinstance(item, Example) else (item.first, item.second)


def splits(task: Task) -> dict[str, tuple[Example, ...] | tuple[Pair, ...]]:
    return {name: getattr(task, name) for name in ("train", "dev", "test") if hasattr(task, name)}


def without(task: Task, is_bad: Callable[[str], bool], reason: str) -> Task:
    """The task without the items of which a text is bad; how many of the test that costs goes into the note."""
    known: dict[str, bool] = {}

    def bad(text: str) -> bool:
        if text not in known:
            known[text] = is_bad(text)
        return known[text]

    kept: dict[str, Any] = {
        name: tuple(item for item in items if not any(map(bad, _texts_in(item))))
        for name, items in splits(task).items()
    }
    dropped, n = len(task.test) - len(kept["test"]), len(task.test)
    note = f"{dropped} of {n} test items dropped: {reason}"
    return task._replace(**kept, note="; ".join(filter(None, (task.note, note))))


def at_most(items: Iterable[One], n: int) -> tuple[One, ...]:
    """``n`` of them, spread evenly over their order, so that all files are in it; or all, where there are fewer."""
    given = tuple(items)
    return given if len(given) <= n else tuple(given[i * len(given) // n] for i in range(n))


def too_small(task: Task) -> str | None:
    """Why a task says nothing, or None where it does: too few items, or one label alone."""
    for name, items in splits(task).items():
        if len(items) < MIN_ITEMS:
            return f"its {name} split has {len(items)} items, and needs {MIN_ITEMS}"
        if isinstance(task, Classification) and len({e.label for e in items if isinstance(e, Example)}) < 2:
            return f"its {name} split has one label alone"
    return None


def windows_of(text: str, n_bytes: int) -> Iterator[tuple[int, str]]:
    """(first character, text) of consecutive whole lines of at most ``n_bytes`` of UTF-8, without blank edges.

    A longer line stands alone, and is cut.
    """
    start = at = size = 0
    for line in io.StringIO(text):
        wide = len(line.encode())
        if size and size + wide > n_bytes:
            yield from _window(text, start, at, n_bytes)
            start, size = at, 0
        at, size = at + len(line), size + wide
    yield from _window(text, start, at, n_bytes)


def _window(text: str, start: int, end: int, n_bytes: int) -> Iterator[tuple[int, str]]:
    found = text[start:end]
    stripped = found.strip("\n").encode()[:n_bytes].decode(errors="ignore")
    if stripped.strip():
        yield start + len(found) - len(found.lstrip("\n")), stripped
