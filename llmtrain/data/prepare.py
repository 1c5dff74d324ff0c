"""The road from text to token shards, taken once for each content: cached, and resumed after a kill."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmtrain.data.corpus import OUTSIDE, Corpus, Mix
from llmtrain.data.dedup import count_copies, keep_hashes, mark_duplicates
from llmtrain.data.digests import Digests, combine
from llmtrain.data.encode import Job, write_shards
from llmtrain.data.held_out import DOCUMENTS, fingerprint_of, prepare_set
from llmtrain.data.set_aside import Kept
from llmtrain.data.shards import Shards
from llmtrain.data.sources.base import summary
from llmtrain.data.split import split
from llmtrain.data.spool import Spool, blocks, open_index, spool_documents
from llmtrain.data.stages import alone, flush, stage, storage_told
from llmtrain.data.tokenizers.base import Tokenizer, TokenizerConfig, load_tokenizer
from llmtrain.data.tokenizers.vocab import scripts_of
from llmtrain.data.training_text import training_text
from llmtrain.errors import DataError
from llmtrain.types import Vocab

log = logging.getLogger(__name__)

_SIDES = ("train", "validation")
FILES = "files.json"  # what the text was read from
_TRAINED = "trained_documents.bin"  # hashes of the documents of which any text is for training
_FORMAT = 1  # of the rules: a change of what they yield makes every corpus anew

Progress = Callable[[str, int, int | None], None]  # stage, bytes done, bytes in all (None: not known)


Inventories = dict[str, dict[str, list[int | str]]]  # by part of a corpus, size and hash of its files by path


class Part(NamedTuple):
    """One corpus of a mix, or the only one."""

    name: str
    weight: float  # share of the tokens of training; all sum to 1
    shards: Shards


class Prepared(NamedTuple):
    """A corpus ready for training."""

    folder: Path
    tokenizer: Tokenizer
    vocab: Vocab
    train: tuple[Part, ...]
    validation: dict[str, Shards]  # by part
    held_out: dict[str, Shards]  # the named sets
    fingerprint: str  # of the text and of the rules that split it, whatever the tokenizer
    files: Inventories  # what the text was read from
    report: dict[
        str, Any
    ]  # by part and by named set: documents, bytes, tokens, what was dropped; seconds by stage

    def left_out(self) -> list[str]:
        """What reading left out or mended of the text, a line for each part and named set where there was any."""
        of = {**self.report["parts"], **self.report["held_out"]}
        return [
            f"{name}: left out or mended {said}" for name, report in of.items() if (said := summary(report))
        ]


def prepare(data: Corpus | Mix, tokenizer: TokenizerConfig, *, progress: Progress | None = None) -> Prepared:
    """The shards of ``data`` under ``tokenizer``: from the cache where they are there, else made.

    A killed preparation is gone on with at the next call; the result is the same, bit for bit, as without the kill
    and with any number of workers. ``progress`` is called at most about ten times a second.
    Raises DataError for text that cannot be used, and StorageError where the cache cannot be written.
    """
    parts = data.components if isinstance(data, Mix) else {"corpus": data}
    weights = data.weights if isinstance(data, Mix) else {"corpus": 1.0}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    cache = Path(data.cache).expanduser()
    digests = Digests(cache / "digests.json")
    fingerprint = _fingerprint(parts, shares, digests)
    sets = {name: fingerprint_of(name, source, digests) for name, source in data.held_out.items()}
    folder = cache / combine([fingerprint, tokenizer.identity()])
    told = _slowed(progress)
    with storage_told(cache):
        digests.save()
        if not _is_whole(folder, shares):
            with alone(folder.with_suffix(".lock")):
                if not _is_whole(folder, shares):  # another process may have made it while this one waited
                    files = {name: part.source.inventory(digests) for name, part in parts.items()}
                    making = _Making(folder.with_suffix(".partial"), parts, shares, fingerprint, told)
                    making.run(tokenizer, data.workers)
                    if _fingerprint(parts, shares, digests) != fingerprint:
                        shutil.rmtree(making.folder)
                        raise DataError("a file of the corpus changed while it was prepared; start again")
                    (making.folder / FILES).write_text(json.dumps(files, indent=1, ensure_ascii=False))
                    shutil.rmtree(folder, ignore_errors=True)
                    making.folder.rename(folder)
                    flush(cache)
    prepared = _open(folder, shares, fingerprint)
    for name, source in data.held_out.items():
        with storage_told(cache):
            made = prepare_set(
                name,
                source,
                sets[name],
                cache,
                folder / "tokenizer",
                digests,
                workers=data.workers,
                progress=told,
            )
        copies = count_copies(made.folder / DOCUMENTS, (folder / part / _TRAINED for part in shares))
        prepared.held_out[name] = made.shards
        prepared.report["held_out"][name] = made.report | {"also_in_training": copies}
    return prepared


def _fingerprint(parts: dict[str, Corpus], shares: dict[str, float], digests: Digests) -> str:
    rules = [_rules(part) for part in parts.values()]
    sources = [part.source.fingerprint(digests) for part in parts.values()]
    return combine([_FORMAT, shares, rules, sources])


def _rules(part: Corpus) -> dict[str, Any]:
    """What is done to the source of a corpus; what is not done to it is no rule of it."""
    named = (f.name for f in fields(part) if f.name not in (*OUTSIDE, "source", "set_aside"))
    rules = {name: getattr(part, name) for name in named}
    return rules if part.set_aside is None else rules | {"set_aside": asdict(part.set_aside)}


def _is_whole(folder: Path, names: Iterable[str]) -> bool:
    """Whether nothing is missing; a user may have deleted a part that was damaged, to have it made again."""
    sides = [folder / name / side for name in names for side in (*_SIDES, _TRAINED)]
    return all(
        path.exists() for path in (folder / "tokenizer", folder / "report.json", folder / FILES, *sides)
    )


def _open(folder: Path, shares: dict[str, float], fingerprint: str) -> Prepared:
    tokenizer = load_tokenizer(folder / "tokenizer")
    train = tuple(
        Part(name, share, Shards.open_for(folder / name / "train", tokenizer))
        for name, share in shares.items()
    )
    validation = {name: Shards.open_for(folder / name / "validation", tokenizer) for name in shares}
    try:
        report = json.loads((folder / "report.json").read_text()) | {"held_out": {}}
        files = json.loads((folder / FILES).read_text())
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{folder}: report.json or {FILES} is not what was written ({error}): delete the folder and start again"
        ) from None
    scripts = scripts_of(tokenizer.n_reserved, tokenizer.surfaces())  # which shards do not keep
    vocab = train[0].shards.vocab._replace(scripts=scripts)
    return Prepared(folder, tokenizer, vocab, train, validation, {}, fingerprint, files, report)


class _Making:
    """The stages of one preparation, each committed in ``folder`` before the next begins."""

    def __init__(
        self,
        folder: Path,
        parts: dict[str, Corpus],
        shares: dict[str, float],
        fingerprint: str,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self._parts = parts
        self._shares = shares
        self._fingerprint = fingerprint
        self._progress = progress
        self._seconds: dict[str, float] = {}

    def run(self, config: TokenizerConfig, workers: int | None) -> None:
        report = self.folder / "report.json"
        if not report.exists():
            with self._timed("read"):
                for name, corpus in self._parts.items():
                    stage(self._work(name) / "documents", partial(self._read, corpus))
            with self._timed("split"):
                for name, corpus in self._parts.items():
                    stage(self._work(name) / "split", partial(self._split, name, corpus))
            with self._timed("tokenizer"):
                stage(self.folder / "tokenizer", partial(self._train_tokenizer, config))
            with self._timed("tokenize"):
                for name in self._parts:
                    for side in _SIDES:
                        self._tokenize(name, side, workers)
                    self._keep_hashes(name)
            content = {"parts": {name: self._report(name) for name in self._parts}, "seconds": self._seconds}
            unfinished = report.with_suffix(".tmp")
            unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False))
            unfinished.rename(report)
        for name in self._parts:  # a kill from here on leaves no stage that could be taken for whole
            shutil.rmtree(self._work(name), ignore_errors=True)

    def _work(self, name: str) -> Path:
        return self.folder / name / "work"

    def _read(self, corpus: Corpus, folder: Path) -> None:
        kept = Kept(corpus)
        counts = spool_documents(corpus, folder, partial(self._progress, "read"), keep=kept)
        counts["set_aside"] = kept.counts
        (folder / "counts.json").write_text(json.dumps(counts, ensure_ascii=False))

    def _split(self, name: str, corpus: Corpus, folder: Path) -> None:
        self._progress("split", 0, None)
        with Spool(self._work(name) / "documents") as spool:
            duplicate = np.broadcast_to(False, len(spool.index))
            if corpus.deduplicate:
                duplicate = mark_duplicates(spool.index, folder)
            counts = split(spool, duplicate, corpus, folder)
        counts["duplicate_documents"] = int(np.count_nonzero(duplicate))
        (folder / "counts.json").write_text(json.dumps(counts))

    def _train_tokenizer(self, config: TokenizerConfig, folder: Path) -> None:
        def texts() -> Iterator[str]:
            with contextlib.ExitStack() as stack:
                spooled = {}
                for name in self._parts:
                    spool = stack.enter_context(Spool(self._work(name) / "documents"))
                    spooled[name] = spool, open_index(self._work(name) / "split" / "train")
                yield from training_text(spooled, self._shares)

        self._progress("tokenizer", 0, None)
        config.build(texts, folder)

    def _tokenize(self, name: str, side: str, workers: int | None) -> None:
        work = self._work(name)
        job = Job(work / "documents" / "text", work / "split" / side, self.folder / "tokenizer", work / side)
        meta = {"source_fingerprint": self._fingerprint, "part": name, "side": side}
        told = partial(self._progress, "tokenize")
        write_shards(job, self.folder / name / side, meta, workers=workers, progress=told)

    def _keep_hashes(self, name: str) -> None:
        index = open_index(self._work(name) / "documents" / "index")
        trained = np.zeros(len(index), bool)
        for block in blocks(open_index(self._work(name) / "split" / "train")):
            trained[block["document"]] = True
        keep_hashes(index, trained, self.folder / name / _TRAINED)

    def _report(self, name: str) -> dict[str, Any]:
        work = self._work(name)
        report = json.loads((work / "documents" / "counts.json").read_text())
        report |= json.loads((work / "split" / "counts.json").read_text())
        for side in _SIDES:
            shards = Shards.open(self.folder / name / side)
            report[side] = {
                "documents": shards.n_documents,
                "bytes": shards.n_bytes,
                "tokens": shards.n_tokens,
            }
        return report

    def _timed(self, name: str) -> "_Timer":
        return _Timer(self._seconds, name)


class _Timer:
    """Adds the seconds of a ``with`` block to ``seconds`` under its name."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = round(time.monotonic() - self._start, 3)


def _slowed(progress: Progress | None) -> Progress:
    """``progress``, but at most about ten times a second, and at each new stage."""
    last_stage, last_time = "", 0.0

    def slow(stage: str, done: int, total: int | None) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if progress and (stage != last_stage or now - last_time > 0.1):
            last_stage, last_time = stage, now
            progress(stage, done, total)

    return slow
