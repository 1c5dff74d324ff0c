"""Named validation sets: text beside the corpus, each set prepared once for a tokenizer and known by its content."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmtrain.data.corpus import Corpus
from llmtrain.data.dedup import keep_hashes, mark_duplicates
from llmtrain.data.digests import Digests, combine
from llmtrain.data.encode import Job, write_shards
from llmtrain.data.shards import Shards
from llmtrain.data.sources.base import Source
from llmtrain.data.split import write_sections
from llmtrain.data.spool import Spool, spool_documents
from llmtrain.data.stages import alone, flush, stage
from llmtrain.data.tokenizers.base import load_tokenizer
from llmtrain.errors import ConfigError, DataError

DOCUMENTS = "documents.bin"  # hashes of the set's documents
_FORMAT = 1
_SECTION = 65_536  # bytes; the same for all runs, so that they score the same rows
_WHOLE = ("shards", DOCUMENTS, "report.json")


class Set(NamedTuple):
    folder: Path
    shards: Shards
    report: dict[str, Any]


def fingerprint_of(name: str, source: Source, digests: Digests) -> str:
    """Of the text of a set. Raises DataError or ConfigError, naming the set, where there is none."""
    with _named(name):
        return source.fingerprint(digests)


def prepare_set(
    name: str,
    source: Source,
    fingerprint: str,
    cache: Path,
    tokenizer: Path,
    digests: Digests,
    *,
    workers: int | None,
    progress: Callable[[str, int, int | None], None],
) -> Set:
    """All documents of ``source`` but exact copies of one another, tokenized: from the cache, or made into it.

    It needs no more of a corpus than the ``tokenizer`` in that folder, so a set that joins leaves the corpus alone. A
    killed preparation is gone on with. Raises DataError, naming the set, for text that cannot be used.
    """
    opened = load_tokenizer(tokenizer)
    folder = cache / combine(["held out", _FORMAT, fingerprint, opened.hash])
    if not _is_whole(folder):
        with _named(name), alone(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                unfinished = folder.with_suffix(".partial")
                _make(
                    unfinished,
                    source,
                    tokenizer,
                    fingerprint,
                    workers,
                    partial(progress, f"held out: {name}"),
                )
                if source.fingerprint(digests) != fingerprint:
                    shutil.rmtree(unfinished)
                    raise DataError("a file of it changed while it was prepared; start again")
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
                flush(cache)
    return Set(
        folder,
        Shards.open_for(folder / "shards", opened),
        json.loads((folder / "report.json").read_text()),
    )


def _is_whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in _WHOLE)


def _make(
    folder: Path,
    source: Source,
    tokenizer: Path,
    fingerprint: str,
    workers: int | None,
    progress: Callable[[int, int | None], None],
) -> None:
    work, report = folder / "work", folder / "report.json"
    if not report.exists():
        documents = stage(work / "documents", partial(_read, source, progress))
        cut = stage(work / "cut", partial(_cut, documents))
        job = Job(documents / "text", cut / "sections", tokenizer, work / "chunks")
        meta = {"source_fingerprint": fingerprint}
        write_shards(job, folder / "shards", meta, workers=workers, progress=progress)
        shutil.copyfile(cut / DOCUMENTS, folder / DOCUMENTS)
        content = [json.loads((made / "counts.json").read_text()) for made in (documents, cut)]
        tokens = Shards.open(folder / "shards").n_tokens
        partial_report = report.with_suffix(".tmp")
        partial_report.write_text(
            json.dumps({**content[0], **content[1], "tokens": tokens}, indent=1, ensure_ascii=False)
        )
        partial_report.rename(report)
    shutil.rmtree(
        work, ignore_errors=True
    )  # a kill from here on leaves no stage that could be taken for whole


def _read(source: Source, progress: Callable[[int, int | None], None], folder: Path) -> None:
    counts = spool_documents(Corpus(source=source), folder, progress)
    (folder / "counts.json").write_text(json.dumps(counts, ensure_ascii=False))


def _cut(documents: Path, folder: Path) -> None:
    with Spool(documents) as spool:
        duplicate = mark_duplicates(spool.index, folder)
        write_sections(spool, duplicate, _SECTION, folder / "sections")
        keep_hashes(spool.index, ~duplicate, folder / DOCUMENTS)
    counts = {"duplicate_documents": int(np.count_nonzero(duplicate))}
    (folder / "counts.json").write_text(json.dumps(counts))


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors about the source of a set name the set, and not the source of the corpus."""
    try:
        yield
    except (DataError, ConfigError) as error:
        text = str(error).replace("data.source", f"data.held_out.{name}")
        raise type(error)(f"held-out set {name}: {text}") from None
