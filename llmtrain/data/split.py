"""Train or validation: by the hash of a section's text, with near-duplicates kept on one side, in bounded memory."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.documents import cut
from llmtrain.data.neighbours import Candidates, Near
from llmtrain.data.spool import (
    BY_HASH,
    INDEX,
    TRAIN,
    VALIDATION,
    IndexWriter,
    Spool,
    blocks,
    hash_halves,
    open_index,
)
from llmtrain.errors import DataError

log = logging.getLogger(__name__)

_MAX_VALIDATION = 10_000_000
_MAX_CANDIDATES = 64_000_000  # bytes; their windows are in memory
_SMALLEST_SECTION = 512
_FEWEST_SECTIONS = 64  # a small corpus is cut finer, so that a tenth of it is more than one section
_ROUNDS = 4


class Limits(NamedTuple):
    """What a corpus of this size allows: bytes of one section, of validation, and of one document in validation."""

    section: int
    validation: int
    per_document: int


def split(spool: Spool, duplicate: np.ndarray, corpus: Corpus, folder: Path) -> dict[str, int]:
    """Write the indexes ``train`` and ``validation`` (parts of the spool's text, in its order) into ``folder``.

    A document that is no ``duplicate`` is cut into sections. The source's own choice of validation counts, where it
    made one; else it is the sections with the smallest hashes. A section that shares more than ``near_duplicate``
    of its 4-line windows, or of the other's, with one of the training part goes there, and so do all candidates
    near to it. What lies together of one document is joined again, up to ``section_bytes``.
    Returns counts for the report. Raises DataError where the corpus is too small, or too much alike, to be split.
    """
    limits = _limits(spool, duplicate, corpus)
    write_sections(spool, duplicate, limits.section, folder / "sections")
    sections = open_index(folder / "sections")
    if len(sections) < 2:
        n_bytes = int(sections["bytes"].sum())
        raise DataError(
            f"the corpus has {n_bytes:,} bytes, too few to split into train and validation; "
            f"give it at least {2 * _SMALLEST_SECTION:,}"
        )
    chosen, near = _choose(spool, sections, corpus, limits)
    for side, name in ((TRAIN, "train"), (VALIDATION, "validation")):
        _write_side(sections, chosen, side, corpus.section_bytes, folder / name)
    (folder / "sections").unlink()
    return {"near_duplicate_sections_to_train": int(near.tainted.sum())}


def _limits(spool: Spool, duplicate: np.ndarray, corpus: Corpus) -> Limits:
    total = under_cap = first = 0
    for block in blocks(spool.index):
        n_bytes = block["bytes"][~duplicate[first : first + len(block)]]
        first += len(block)
        total += int(n_bytes.sum())
        under_cap += int(np.minimum(n_bytes, corpus.validation_bytes_per_file).sum())
    least = min(corpus.validation_min_bytes, total // 10)
    validation = max(1, min(max(least, int(corpus.validation_fraction * total)), _MAX_VALIDATION))
    # one book, or a few: no validation of that size has so little of each
    per_document = corpus.validation_bytes_per_file if under_cap >= 4 * validation else total
    finest = max(_SMALLEST_SECTION, total // _FEWEST_SECTIONS)
    return Limits(
        min(corpus.section_bytes, corpus.validation_bytes_per_file, finest), validation, per_document
    )


def write_sections(spool: Spool, duplicate: np.ndarray, limit: int, path: Path) -> None:
    """Write the index of what each document that is no ``duplicate`` is cut into, at most ``limit`` bytes a section."""
    first = 0
    with IndexWriter(path) as index:
        for block in blocks(spool.index):
            for record, dropped in zip(block, duplicate[first : first + len(block)], strict=True):
                if not dropped:
                    text = spool.text(record)
                    for start, end in cut(text, limit):
                        side = int(record["side"])
                        halves = hash_halves(text[start:end])
                        index.add(
                            int(record["start"]) + start, end - start, int(record["document"]), side, *halves
                        )
            first += len(block)


def _choose(spool: Spool, sections: np.ndarray, corpus: Corpus, limits: Limits) -> tuple[np.ndarray, Near]:
    """Ordinals (sorted) of the sections for validation, and what was found near to what among the candidates."""
    given = np.flatnonzero(np.asarray(sections["side"]) == VALIDATION)
    pool = 3 * limits.validation
    for _ in range(_ROUNDS):
        candidates = given if len(given) else _smallest(sections, min(pool, _MAX_CANDIDATES))
        texts = [spool.text(sections[i]) for i in candidates]
        near = Candidates(texts, corpus.near_duplicate).near(_others(spool, sections, candidates))
        wanted = None if len(given) else limits.validation
        chosen = _admit(sections[candidates], near, wanted, limits.per_document)
        n_bytes = int(sections["bytes"][candidates[chosen]].sum())
        if n_bytes >= limits.validation or len(given) or len(candidates) == len(sections):
            break
        pool *= 3
    if 0 < n_bytes < limits.validation and not len(given):
        log.warning(
            "validation has %d bytes where %d were wanted: most other sections are near duplicates of training text",
            n_bytes,
            limits.validation,
        )
    if n_bytes == 0 or n_bytes == int(sections["bytes"].sum()):
        raise DataError(
            f"no part of the corpus ({int(sections['bytes'].sum()):,} bytes) can be held out: its sections are near "
            "duplicates of each other; add other text, or set data.near_duplicate=1 to split it all the same"
        )
    return np.sort(candidates[chosen]), near


def _smallest(sections: np.ndarray, n_bytes: int) -> np.ndarray:
    """Ordinals of the sections with the smallest hashes, smallest first, until they have ``n_bytes`` in all."""
    kept, ordinals, first = np.zeros(0, INDEX), np.zeros(0, np.int64), 0
    for block in blocks(sections):
        eligible = np.flatnonzero(block["side"] == BY_HASH)
        kept = np.concatenate([kept, block[eligible]])
        ordinals = np.concatenate([ordinals, eligible + first])
        order = np.lexsort((ordinals, kept["low"], kept["high"]))
        order = order[: np.searchsorted(np.cumsum(kept["bytes"][order]), n_bytes) + 1]
        kept, ordinals = kept[order], ordinals[order]
        first += len(block)
    return ordinals


def _others(spool: Spool, sections: np.ndarray, candidates: np.ndarray) -> Iterator[bytes]:
    """The texts that are no candidates."""
    first = 0
    for block in blocks(sections):
        for i in np.flatnonzero(~np.isin(np.arange(first, first + len(block)), candidates)):
            yield spool.text(block[i])
        first += len(block)


def _admit(records: np.ndarray, near: Near, wanted: int | None, per_document: int) -> np.ndarray:
    """Indices of the candidates taken for validation, in their order, until ``wanted`` bytes (None: all that may).

    Candidates near to each other are taken together or not at all; none that would bring more than
    ``per_document`` bytes of one document, or more than twice what is wanted.
    """
    taken: list[int] = []
    of_document: Counter[int] = Counter()
    total = 0
    groups: dict[int, list[int]] = {}
    for i, leader in enumerate(near.group.tolist()):
        groups.setdefault(leader, []).append(i)
    for leader, members in groups.items():
        sizes: Counter[int] = Counter()
        for i in members:
            sizes[int(records["document"][i])] += int(records["bytes"][i])
        too_much = wanted is not None and total + sizes.total() > max(2 * wanted, _SMALLEST_SECTION)
        of_one_document = any(of_document[d] + n > per_document for d, n in sizes.items())
        if near.tainted[leader] or too_much or of_one_document:
            continue
        taken += members
        of_document += sizes
        total += sizes.total()
        if wanted is not None and total >= wanted:
            break
    return np.array(taken, np.int64)


def _write_side(sections: np.ndarray, chosen: np.ndarray, side: int, limit: int, path: Path) -> None:
    """The sections of one side, those that touch in one document joined up to ``limit`` bytes."""
    start = n_bytes = 0
    document = -1
    first = 0
    with IndexWriter(path) as index:
        for block in blocks(sections):
            in_validation = np.isin(np.arange(first, first + len(block)), chosen)
            first += len(block)
            for record in block[in_validation == (side == VALIDATION)]:
                at, size, of = int(record["start"]), int(record["bytes"]), int(record["document"])
                if of == document and at == start + n_bytes and n_bytes + size <= limit:
                    n_bytes += size
                    continue
                if n_bytes:
                    index.add(start, n_bytes, document, side)
                start, n_bytes, document = at, size, of
        if n_bytes:
            index.add(start, n_bytes, document, side)
