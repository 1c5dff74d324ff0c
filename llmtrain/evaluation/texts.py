"""Texts to measure a run on: its own validation documents, or files that a user names."""

from collections.abc import Mapping
from pathlib import Path

from llmtrain.data.prepare import Prepared
from llmtrain.data.shards import Shards
from llmtrain.data.sources.base import Tally
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Document
from llmtrain.record import RunRecord


def validation_texts(validation: Mapping[str, Shards], tokenizer: Tokenizer) -> tuple[Document, ...]:
    """The documents that a run was validated on, by part of its data: what tokens decode to."""
    return tuple(
        Document(f"{name}:{i}", tokenizer.decode(shards.tokens[start:end]))
        for name, shards in validation.items()
        for i, (start, end) in enumerate(zip(shards.offsets[:-1], shards.offsets[1:], strict=True))
    )


def own_texts(folder: Path, prepared: Prepared, tokenizer: Tokenizer) -> tuple[Document, ...]:
    """What the run in ``folder`` was validated on, of its corpus as it is ``prepared`` today.

    Raises DataError where today's corpus is another one: parts of it may have been trained on.
    """
    record = folder / "record.json"
    same = not record.exists() or RunRecord.read(record).corpus_fingerprint == prepared.fingerprint
    if prepared.tokenizer.hash != tokenizer.hash or not same:
        what = "corpus" if not same else "corpus, by its tokenizer,"
        raise DataError(
            f"{folder.name}: the {what} is no longer the one that this run was trained on, so its validation text may "
            "hold what was trained on: bring that corpus back, or name texts of your own (texts=PATH)"
        )
    return validation_texts(prepared.validation, tokenizer)


def texts_in(paths: str | tuple[str, ...]) -> tuple[Document, ...]:
    """Every document in files, folders and globs. Raises DataError for what cannot be read."""
    documents = TextFiles(paths=paths, on_bad_document="error").documents(Tally())
    return tuple(Document(f"{found.file}:{found.place}", found.text) for found in documents)
