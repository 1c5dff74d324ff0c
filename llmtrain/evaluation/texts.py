"""Texts to measure a run on: its own validation documents, or files that a user names."""

from collections.abc import Mapping

from llmtrain.data.shards import Shards
from llmtrain.data.sources.base import Tally
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import Document


def validation_texts(validation: Mapping[str, Shards], tokenizer: Tokenizer) -> tuple[Document, ...]:
    """The documents that a run was validated on, by part of its data: what tokens decode to."""
    return tuple(
        Document(f"{name}:{i}", tokenizer.decode(shards.tokens[start:end]))
        for name, shards in validation.items()
        for i, (start, end) in enumerate(zip(shards.offsets[:-1], shards.offsets[1:], strict=True))
    )


def texts_in(paths: str | tuple[str, ...]) -> tuple[Document, ...]:
    """Every document in files, folders and globs. Raises DataError for what cannot be read."""
    documents = TextFiles(paths=paths, on_bad_document="error").documents(Tally())
    return tuple(Document(f"{found.file}:{found.place}", found.text) for found in documents)
