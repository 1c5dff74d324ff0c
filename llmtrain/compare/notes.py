"""What a reader must know of a value: what holds for all of a yardstick is said once, the rest where it holds."""

from collections.abc import Iterable, Sequence

from llmtrain.compare.results import Result

_BETWEEN = "; "
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def in_all(notes: Sequence[str]) -> list[str]:
    """What every one of these says."""
    parts = [note.split(_BETWEEN) for note in notes]
    return [one for one in dict.fromkeys(parts[0]) if one and all(one in other for other in parts)]


def joined(notes: Iterable[str]) -> str:
    return _BETWEEN.join(notes)


def of_all(result: Result) -> list[str]:
    """Of every series on this yardstick; nothing where there is only one."""
    return in_all([one.note for one in result.standings]) if len(result.standings) > 1 else []


def of_one(result: Result) -> dict[str, list[str]]:
    """Of each series, what is not said of all."""
    shared = of_all(result)
    return {
        one.series: [note for note in one.note.split(_BETWEEN) if note and note not in shared]
        for one in result.standings
    }


def numbered(results: Sequence[Result]) -> dict[str, str]:
    """A raised number for each note of single series in a table."""
    notes = dict.fromkeys(note for one in results for own in of_one(one).values() for note in own)
    return {note: str(i + 1).translate(_RAISED) for i, note in enumerate(notes)}
