"""Text of one's own: a document per text file, JSON line or Parquet row, from files, folders and globs."""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path

from llmtrain.config import config
from llmtrain.data.digests import Digests, combine
from llmtrain.data.documents import OnBad, OnInvalid, accept, decode
from llmtrain.data.sources.base import Document, Source, Tally
from llmtrain.data.sources.files import COMPRESSED, lines, pieces
from llmtrain.errors import ConfigError, DataError

_PLAIN = (".txt", ".md", ".py")
_FORMATS = (*_PLAIN, ".jsonl", ".parquet")
_PIECE = 1 << 24  # a larger text file is read as several documents, so that memory does not grow with it
_BATCH = 256  # rows of a Parquet file in memory at a time


@config
class TextFiles(Source):
    """Files in the order given; those of a folder or a glob sorted by name, each read once."""

    paths: str | tuple[str, ...]
    field: str = "text"
    invalid_utf8: OnInvalid = "replace"
    on_bad_document: OnBad = "skip"

    def files(self, tally: Tally) -> list[Path]:
        """Every file to read. Raises DataError for a path or a glob with nothing to read in it."""
        found: dict[str, Path] = {}
        for path in (self.paths,) if isinstance(self.paths, str) else self.paths:
            for file in _expand(path, tally):
                found.setdefault(os.path.realpath(file), file)
        return list(found.values())

    def documents(self, tally: Tally) -> Iterator[Document]:
        for file in self.files(tally):
            match _format(file):
                case ".jsonl":
                    yield from self._json_lines(file, tally)
                case ".parquet":
                    yield from self._parquet(file, tally)
                case _:
                    yield from self._text(file, tally)

    def fingerprint(self, digests: Digests) -> str:
        # where a file lies says nothing of what is in it; its format decides how it is read
        files = [(_format(file), file.suffix, digests.of(file)) for file in self.files(Tally())]
        return combine([self.field, self.invalid_utf8, self.on_bad_document, files])

    def _text(self, file: Path, tally: Tally) -> Iterator[Document]:
        for line, raw in pieces(file, _PIECE):
            text = decode(raw, self.invalid_utf8, tally, file=str(file), line=line)
            if document := accept(text, self.on_bad_document, tally, file=str(file), place=str(line)):
                yield document

    def _json_lines(self, file: Path, tally: Tally) -> Iterator[Document]:
        number = 0
        for number, raw in lines(file):
            where = f"{file}:{number}"
            if not raw.strip():
                tally.drop("blank line", where)
                continue
            line = decode(raw, self.invalid_utf8, tally, file=str(file), line=number)
            try:
                row = json.loads(line.removeprefix("\ufeff"))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: the line is not JSON ({error}); write one JSON object a line, or repair the line"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{where}: the line is JSON but no object ({type(row).__name__}); write lines such as "
                    f'{{"{self.field}": "..."}}'
                )
            if self.field not in row:
                raise DataError(f"{where}: {missing_field(self.field, row)}")
            if document := accept(
                row[self.field], self.on_bad_document, tally, file=str(file), place=str(number)
            ):
                yield document
        if number == 0:
            raise DataError(f"{file}: the file is empty; remove it from the paths, or write it again")

    def _parquet(self, file: Path, tally: Tally) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            if self.field not in names:
                raise DataError(f"{file}: {missing_field(self.field, names)}")
            row = 0
            for batch in table.iter_batches(_BATCH, columns=[self.field]):
                # as bytes: strings in Parquet are not checked to be UTF-8 by all that write them
                for value in batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                    row += 1
                    place = f"row {row}"
                    if value is not None:
                        value = decode(value, self.invalid_utf8, tally, file=f"{file}:{place}", line=1)
                    if document := accept(value, self.on_bad_document, tally, file=str(file), place=place):
                        yield document
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            kind = table.schema_arrow.field(self.field).type
            raise DataError(
                f"{file}: the field {self.field!r} holds {kind}, not text; choose another with field="
            ) from error
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{file}: not a whole Parquet file ({reason}); fetch or write it again"
            ) from error
        if row == 0:
            raise DataError(f"{file}: the file has no rows; remove it from the paths, or write it again")


def missing_field(field: str, there: object) -> str:
    """Why a row cannot be read, and what it could be read by; ``there`` iterates over the names of its fields."""
    names = ", ".join(sorted(map(repr, there)))  # type: ignore[call-overload]
    return f"there is no field {field!r}; choose one of those there with field=: {names or 'none'}"


def _format(file: Path) -> str | None:
    """The suffix that says how to read ``file``, lower case, without that of a compression; None if it is not known."""
    suffixes = [s.lower() for s in file.suffixes]
    compressed = suffixes[-1:] and suffixes[-1] in COMPRESSED
    suffix = suffixes[-2:-1] if compressed else suffixes[-1:]
    if not suffix or suffix[0] not in _FORMATS or (compressed and suffix[0] == ".parquet"):
        return None
    return suffix[0]


def _expand(path: str, tally: Tally) -> list[Path]:
    """The files that one entry of ``paths`` stands for; what a folder or a glob holds besides text is counted."""
    path = os.path.expanduser(path)
    if not path:
        raise ConfigError("data.source.paths has an empty path; name a file, a folder or a glob")
    if os.path.isfile(path):
        if _format(Path(path)) is None:
            raise DataError(
                f"{path}: the format is not known by its suffix; rename it to one of {' '.join(_FORMATS)}, "
                f"with {' '.join(COMPRESSED)} after it if compressed (Parquet is not)"
            )
        return [Path(path)]
    if os.path.isdir(path):
        found = glob.glob(os.path.join(glob.escape(path), "**", "*"), recursive=True)
    else:
        found = glob.glob(path, recursive=True)
        if not found:
            hint = "the pattern matches nothing" if glob.has_magic(path) else "no such file or folder"
            raise DataError(f"{path}: {hint} (from {os.getcwd()}); correct data.source.paths")
    files = [Path(f) for f in sorted(found) if os.path.isfile(f)]
    for other in (f for f in files if _format(f) is None):
        tally.drop("file of another format", str(other))
    files = [f for f in files if _format(f) is not None]
    if not files:
        raise DataError(
            f"{path}: no file in it ends in one of {' '.join(_FORMATS)}; correct data.source.paths"
        )
    return files
