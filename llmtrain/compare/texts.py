"""Where held-out texts come from, and how their files are dealt to the splits of probes."""

from collections.abc import Iterator

import xxhash

from llmtrain.compare.settings import HeldOut
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.set_aside import Unit, set_aside
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Document, HeldOutTexts

_PURPOSE = b"dealt"


def held_out_texts(data: Corpus | Mix, held: HeldOut) -> HeldOutTexts:
    """The texts that ``data`` sets aside, files near to each other in one split.

    Files come in the order of a hash of their text: the first of them test, the next choose, the others train probes.
    Raises DataError where a split would be empty.
    """
    groups = sorted(_groups(data), key=_place)
    n = sum(len(units) for units in groups)
    splits: dict[str, list[Document]] = {"test": [], "dev": [], "train": []}
    ends = {"test": held.test * n, "dev": (held.test + held.dev) * n, "train": float(n)}
    dealt = 0
    for units in groups:
        split = next(name for name, end in ends.items() if dealt < end)
        splits[split] += [Document(unit.name, document.text) for unit in units for document in unit.documents]
        dealt += len(units)
    if empty := [name for name, documents in splits.items() if not documents]:
        raise DataError(
            f"{n} {held.texts.by}s are held out, too few for three splits ({', '.join(empty)} would be empty): give "
            "more text or a larger comparison.held_out.texts.share"
        )
    return HeldOutTexts(**{name: tuple(sorted(documents)) for name, documents in splits.items()})


def _groups(data: Corpus | Mix) -> Iterator[list[Unit]]:
    """What is near to each other, as one."""
    for corpus in data.components.values() if isinstance(data, Mix) else (data,):
        found: dict[int, list[Unit]] = {}
        for unit in set_aside(corpus):
            found.setdefault(unit.group, []).append(unit)
        yield from found.values()


def _place(units: list[Unit]) -> int:
    return xxhash.xxh3_64_intdigest(_PURPOSE + units[0].documents[0].text.encode())
