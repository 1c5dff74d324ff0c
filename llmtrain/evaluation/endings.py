"""Cloze items of any text: an ending, and others as long and about as frequent that could stand in its place."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from llmtrain import philox
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Document
from llmtrain.evaluation.windows import cut

_SPACELESS = "\u3040-\u309f\u30a0-\u30ff\u3400-\u9fff々ー"
# what is ranked, and the boundary behind it, by which a word is told from a longer one that begins alike
_WORD = re.compile(r"(?<=\S) ([^\W\d_]{3,})(?=[^\w\s]|\n)")
_LAST_FOUR = re.compile(rf"([{_SPACELESS}]{{4}})(?=[。、！？」\n])")
_ANY_WORD = re.compile(r"(?<!\w)[^\W\d_]{3,}(?!\w)")


class Cloze(NamedTuple):
    """A text without its end. All candidates have as many bytes, the boundary included."""

    id: str
    file: str
    begins: bool  # whether the document begins with ``given``
    given: str
    candidates: tuple[str, ...]  # the true one first, each with the same boundary


class _Place(NamedTuple):
    id: str
    document: Document
    at: int  # character
    spaced: bool
    ending: str
    boundary: str

    @property
    def whole(self) -> str:
        """What a model is asked for."""
        return f"{' ' if self.spaced else ''}{self.ending}{self.boundary}"


def clozes(
    test: Sequence[Document],
    every: Sequence[Document],
    *,
    n_candidates: int,
    context_bytes: int,
    allowed: Callable[[str], bool],
) -> Iterator[Callable[[], Cloze] | None]:
    """Of each place in ``test`` that has an item, what makes that; none where its text is not ``allowed``.

    Where words are spaced, the ending is a word of letters, with the space before and the mark or line break behind
    it; in Japanese the last four characters before a mark. Its rivals are its neighbours in the order of frequency in
    ``every`` document, among endings of as many bytes. Which place of the ``n_candidates`` it has in that order is
    drawn, so who knows frequencies alone is at chance: the most frequent endings, which have too few neighbours on one
    side, are left out, as are places with less than half of ``context_bytes`` before them.
    """
    pool = _Pool(every)
    for number, document in enumerate(test):
        for place in _places(number, document):
            if pool.amid(place, n_candidates - 1) and _has_context(place, context_bytes // 2):
                start, given = _before(place, context_bytes)
                if allowed(given + place.whole):
                    yield partial(_item, place, pool, n_candidates, start, given)
                else:
                    yield None


def _places(number: int, document: Document) -> Iterator[_Place]:
    for pattern, spaced in ((_WORD, True), (_LAST_FOUR, False)):
        for match in pattern.finditer(document.text):
            boundary = document.text[match.end()]
            if not spaced or not re.match(f"[{_SPACELESS}]", match[1]):
                name = f"{document.file}:{number}:{match.start()}"  # a file may have several documents
                yield _Place(name, document, match.start(), spaced, match[1], boundary)


def _has_context(place: _Place, n_bytes: int) -> bool:
    return len(place.document.text[max(0, place.at - n_bytes) : place.at].encode()) >= n_bytes


class _Pool:
    """All endings by kind and length in bytes, the most frequent first; those as frequent in an order that is drawn."""

    def __init__(self, documents: Sequence[Document]) -> None:
        counts = {True: Counter[str](), False: Counter[str]()}
        for document in documents:
            counts[True].update(_ANY_WORD.findall(document.text))
            counts[False].update(_LAST_FOUR.findall(document.text))
        self._of: dict[tuple[bool, int], list[str]] = {}
        for spaced, counter in counts.items():
            for text in sorted(counter):
                if not (spaced and re.match(f"[{_SPACELESS}]", text)):
                    self._of.setdefault((spaced, len(text.encode())), []).append(text)
        self._rank: dict[tuple[bool, str], int] = {}
        for (spaced, n_bytes), texts in self._of.items():
            drawn = philox.generator(0, f"cloze {spaced} {n_bytes}").permutation(texts)
            texts[:] = sorted(drawn.tolist(), key=lambda text: -counts[spaced][text])
            self._rank |= {(spaced, text): i for i, text in enumerate(texts)}

    def amid(self, place: _Place, n: int) -> bool:
        """Whether it has ``n`` neighbours on either side."""
        n_all = len(self._of.get((place.spaced, len(place.ending.encode())), ()))
        return n_all > 0 and n <= self._rank[place.spaced, place.ending] < n_all - n

    def rivals(self, place: _Place, n: int) -> list[str]:
        texts = self._of[place.spaced, len(place.ending.encode())]
        rank = self._rank[place.spaced, place.ending]
        before = int(philox.generator(0, f"cloze {place.id}").integers(n + 1))
        return texts[rank - before : rank] + texts[rank + 1 : rank + 1 + n - before]


def _before(place: _Place, n_bytes: int) -> tuple[int, str]:
    """The byte at which the context begins, and the context."""
    raw = place.document.text[: place.at].encode()
    start = 0 if len(raw) <= n_bytes else cut(raw, len(raw) - n_bytes, 0)
    return start, raw[start:].decode()


def _item(place: _Place, pool: _Pool, n_candidates: int, start: int, given: str) -> Cloze:
    endings = (place.ending, *pool.rivals(place, n_candidates - 1))
    return Cloze(
        place.id,
        place.document.file,
        start == 0,
        given,
        tuple(place._replace(ending=ending).whole for ending in endings),
    )


def candidate_ids(item: Cloze, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    return [tuple(ids.tolist()) for ids in tokenizer.encode_batch(item.candidates)]
