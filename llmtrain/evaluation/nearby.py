"""What lies near in a corpus: the continuation of a window, and the package that it is of.

Both are close to what contrastive learning trains for, which takes texts of one document for alike: they are measured,
labelled so, and left out of any summary.
"""

from collections.abc import Iterable, Iterator

from llmtrain.evaluation.base import Document, HeldOutTexts
from llmtrain.evaluation.tasks import Classification, Example, Input, Pair, Retrieval, at_most, windows_of

_NOTE = "close to the contrastive objective"


def continuations(texts: HeldOutTexts, *, n_bytes: int, dev: int, test: int) -> Retrieval:
    """The window that follows, among those that follow others; no window is in two pairs."""
    return Retrieval(
        "continuation",
        dev=at_most(_pairs(texts.dev, n_bytes), dev),
        test=at_most(_pairs((*texts.train, *texts.test), n_bytes), test),
        summary=False,
        note=_NOTE,
    )


def modules(texts: HeldOutTexts, *, n_bytes: int, train: int, dev: int, test: int) -> Classification:
    """The first folder in the path of a file; of all splits, those that each split has, so that no file tells it."""
    parts = [list(_examples(part, n_bytes)) for part in texts]
    common = set.intersection(*({example.label for example in part} for part in parts))
    of_train, of_dev, of_test = ([e for e in part if e.label in common] for part in parts)
    return Classification(
        "module",
        train=at_most(of_train, train),
        dev=at_most(of_dev, dev),
        test=at_most(of_test, test),
        summary=False,
        note=_NOTE,
    )


def _pairs(documents: Iterable[Document], n_bytes: int) -> Iterator[Pair]:
    seen: set[str] = set()
    for number, document in enumerate(documents):
        found = list(windows_of(document.text, n_bytes))
        for (at, first), (_, second) in zip(found[::2], found[1::2], strict=False):
            if first not in seen and second not in seen:
                seen |= {first, second}
                yield Pair(f"{document.file}:{number}:{at}", document.file, first, second)


def _examples(documents: Iterable[Document], n_bytes: int) -> Iterator[Example]:
    for number, document in enumerate(documents):
        folder, _, rest = document.file.partition("/")
        if not rest:
            continue
        for at, window in windows_of(document.text, n_bytes):
            first = window.split(maxsplit=1)[0]
            yield Example(f"{document.file}:{number}:{at}", document.file, Input(window), folder, first)
