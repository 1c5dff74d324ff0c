"""Files that a corpus keeps for later comparisons: neither trained on nor validated on, nor near to what is."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import xxhash

from llmtrain.data.corpus import Corpus, SetAside
from llmtrain.data.neighbours import Candidates
from llmtrain.data.sources.base import Document, Tally
from llmtrain.data.spool import read
from llmtrain.errors import DataError

_PURPOSE = b"set aside"  # so that no other choice by a hash of the text makes the same one


class Unit(NamedTuple):
    """A file that is set aside, or a document where files hold many."""

    name: str
    group: int  # the same for units near to each other
    documents: tuple[Document, ...]


class _Read(NamedTuple):
    name: str
    documents: tuple[Document, ...]
    drawn: bool


def set_aside(corpus: Corpus) -> tuple[Unit, ...]:
    """What ``corpus`` sets aside, in the order of its source; nothing where it sets nothing aside.

    A unit is drawn by the hash of its first document's text, so it matters not where it lies or what it is called. One
    that shares more than ``near_duplicate`` of its 4-line windows, or of the other's, with one that is not drawn stays
    in the corpus, and so do all drawn ones near to it. What the source itself holds out is left to validation.
    Raises DataError where nothing can be set aside, or nothing would be left.
    """
    if corpus.set_aside is None:
        return ()
    drawn = [unit for unit in _units(corpus, corpus.set_aside) if unit.drawn]
    near = Candidates(map(_text, drawn), corpus.near_duplicate).near(
        _text(unit) for unit in _units(corpus, corpus.set_aside) if not unit.drawn
    )
    found = tuple(
        Unit(unit.name, int(group), unit.documents)
        for unit, group, tainted in zip(drawn, near.group, near.tainted, strict=True)
        if not tainted
    )
    if not found:
        raise DataError(
            f"data.set_aside: no {corpus.set_aside.by} of the corpus can be set aside ({len(drawn)} were drawn, all "
            "near to others): give more text, a larger data.set_aside.share, or data.set_aside.by=document "
            "where a file holds many documents"
        )
    return found


class Kept:
    """Whether a document of ``corpus`` stays in it; ``counts`` says what does not."""

    def __init__(self, corpus: Corpus) -> None:
        units = set_aside(corpus)
        self._rule, self._names = corpus.set_aside, frozenset(unit.name for unit in units)
        documents = [document for unit in units for document in unit.documents]
        n_bytes = sum(len(document.text.encode()) for document in documents)
        self.counts = {"units": len(units), "documents": len(documents), "bytes": n_bytes}

    def __call__(self, document: Document) -> bool:
        return self._rule is None or _name(document, self._rule) not in self._names


def _name(document: Document, rule: SetAside) -> str:
    """The unit that a document belongs to."""
    return document.file if rule.by == "file" else f"{document.file}:{document.place}"


def _units(corpus: Corpus, rule: SetAside) -> Iterator[_Read]:
    """The units of a corpus; the texts of those that are not drawn are not kept beyond their turn."""
    for name, documents in groupby(read(corpus, Tally()), lambda document: _name(document, rule)):
        whole = tuple(documents)
        theirs = any(corpus.source.held_out(document) for document in whole)
        share = xxhash.xxh3_64_intdigest(_PURPOSE + whole[0].text.encode()) / 2**64
        yield _Read(name, whole, share < rule.share and not theirs)


def _text(unit: _Read) -> bytes:
    return "\n".join(document.text for document in unit.documents).encode()
