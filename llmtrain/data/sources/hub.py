"""Datasets of the Hugging Face Hub, or local files that its ``datasets`` library reads; streamed, or fetched once."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.config import config
from llmtrain.data.digests import Digests, combine
from llmtrain.data.documents import OnBad, accept
from llmtrain.data.sources.base import Document, Source, Tally
from llmtrain.data.sources.text import missing_field
from llmtrain.errors import DataError, Unreachable


@config
class Hub(Source):
    """The rows of one split, in the order of the dataset. Code that comes with a dataset is never run.

    A remote dataset is known by its name and ``revision``: set a commit there, and its content cannot change.
    """

    path: str  # a dataset of the Hub, or a builder for data_files: json, parquet, csv, text
    name: str | None = None  # its configuration, where it has several
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | None = None
    field: str = "text"
    streaming: bool = True
    on_bad_document: OnBad = "replace"

    def documents(self, tally: Tally) -> Iterator[Document]:
        where = self._where()
        for number, row in enumerate(self.rows(), 1):
            if self.field not in row:
                raise DataError(f"{where}:row {number}: {missing_field(self.field, row)}")
            place = f"row {number}"
            if document := accept(row[self.field], self.on_bad_document, tally, file=where, place=place):
                yield document

    def fingerprint(self, digests: Digests) -> str:
        named = [self.path, self.name, self.split, self.revision, self.field, self.on_bad_document]
        return combine([*named, self._data_files(), [digests.of(file) for file in self._local_files()]])

    def inventory(self, digests: Digests) -> dict[str, list[int | str]]:
        return {str(file): digests.entry(file) for file in self._local_files()}

    def _data_files(self) -> list[str]:
        return [self.data_files] if isinstance(self.data_files, str) else list(self.data_files or ())

    def _local_files(self) -> list[Path]:
        """What lies on this machine of what will be read, and so can be hashed."""
        patterns = self._data_files() or [os.path.join(glob.escape(self.path), "**", "*")]
        found = (Path(f) for pattern in patterns for f in sorted(glob.glob(pattern, recursive=True)))
        return [f for f in found if f.is_file()]

    def rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it would log is in the error
        try:
            yield from datasets.load_dataset(
                self.path,
                name=self.name,
                split=self.split,
                revision=self.revision,
                data_files=self._data_files() or None,
                streaming=self.streaming,
            )
        except Exception as error:  # the library and its transports raise some forty kinds
            raise _told(error, self._where()) from error

    def _where(self) -> str:
        """What messages call this dataset."""
        files = self._data_files()
        return files[0] if len(files) == 1 else "/".join(filter(None, (self.path, self.name)))


def _told(error: Exception, where: str) -> DataError:
    """One line of why ``datasets`` gave up, and what the user can do."""
    told = " ".join(str(error).split())[:300] or type(error).__name__
    if of_network(error):
        return Unreachable(
            f"{where}: the Hub cannot be reached ({told}); connect to the network, or train on local files with "
            "data=text, or on the embedded corpus with data=python"
        )
    return DataError(
        f"{where}: datasets cannot read it ({told}); check data.source.path, name, split, revision and data_files"
    )


def of_network(error: Exception) -> bool:
    """Whether what ``datasets`` raised began with a network that could not be reached."""
    kinds = ""
    cause: BaseException | None = error
    while cause is not None:
        kinds += f" {type(cause).__name__}"
        cause = cause.__cause__ or cause.__context__
    signs = ("Connection", "Offline", "LocalEntryNotFound", "Resolution", "Timeout")
    return any(sign in kinds for sign in signs)
