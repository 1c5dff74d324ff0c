"""Text of one's own: a document per text file, JSON line or Parquet row, from files, folders and globs."""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from llmtrain.config import config
from llmtrain.data.digests import Digests, combine
from llmtrain.data.documents import OnBad, accept, decode
from llmtrain.data.sources.base import Document, Source, Tally
from llmtrain.data.sources.files import COMPRESSED, BadFile, lines, pieces
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
    on_bad_document: OnBad = "replace"
    on_bad_file: Literal["error", "skip"] = "error"

    def files(self, tally: Tally) -> list[Path]:
        """Every file to read. Raises DataError for a path or a glob with nothing to read in it."""
        found: dict[str, Path] = {}
        for path in (self.paths,) if isinstance(self.paths, str) else self.paths:
            for file in _expand(path, tally):
                found.setdefault(os.path.realpath(file), file)
        return list(found.values())

    def documents(self, tally: Tally) -> Iterator[Document]:
        for file in self.files(tally):
            try:
                match _format(file):
                    case ".jsonl":
                        yield from self._json_lines(file, tally)
                    case ".parquet":
                        yield from self._parquet(file, tally)
                    case _:
                        yield from self._text(file, tally)
            except BadFile as error:
                self._refuse(error, str(file), tally)

    def fingerprint(self, digests: Digests) -> str:
        # where a file lies says nothing of what is in it; its format decides how it is read
        files = [(_format(file), file.suffix, digests.of(file)) for file in self.files(Tally())]
        return combine([self.field, self.on_bad_document, self.on_bad_file, files])

    def inventory(self, digests: Digests) -> dict[str, list[int | str]]:
        return {str(file): digests.entry(file) for file in self.files(Tally())}

    def _refuse(self, error: BadFile, place: str, tally: Tally) -> None:
        """Raise ``error``, or count it where the config says so."""
        if self.on_bad_file == "error":
            raise BadFile(f"{error}; on_bad_file=skip counts and skips such") from error
        tally.drop(error.reason, place)

    def _accepted(self, value: object, tally: Tally, file: Path, place: str) -> Iterator[Document]:
        if document := accept(value, self.on_bad_document, tally, file=str(file), place=place):
            yield document

    def _text(self, file: Path, tally: Tally) -> Iterator[Document]:
        for line, raw in pieces(file, _PIECE):
            text = decode(raw, self.on_bad_document, tally, file=str(file), line=line)
            if text is not None:
                yield from self._accepted(text, tally, file, str(line))

    def _json_lines(self, file: Path, tally: Tally) -> Iterator[Document]:
        number = 0
        for number, raw in lines(file):
            where = f"{file}:{number}"
            if not raw.strip():
                tally.drop("blank line", where)
                continue
            line = decode(raw, self.on_bad_document, tally, file=str(file), line=number)
            if line is None:
                continue
            try:
                value = self._value(line, where)
            except BadFile as error:
                self._refuse(error, where, tally)
                continue
            yield from self._accepted(value, tally, file, str(number))
        if number == 0:
            raise _empty(file)

    def _value(self, line: str, where: str) -> object:
        """What the field of a JSON line holds."""
        try:
            row = json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise BadFile(
                f"{where}: the line is not JSON ({error}); write one JSON object a line, or repair the line",
                "line that is not JSON",
            ) from error
        if not isinstance(row, dict):
            raise BadFile(
                f"{where}: the line is JSON but no object ({type(row).__name__}); write lines such as "
                f'{{"{self.field}": "..."}}',
                "line that is no JSON object",
            )
        if self.field not in row:
            raise BadFile(f"{where}: {missing_field(self.field, row)}", "line without the field")
        return row[self.field]

    def _parquet(self, file: Path, tally: Tally) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        try:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            if self.field not in names:
                raise BadFile(f"{file}: {missing_field(self.field, names)}", "file without the field")
            for batch in table.iter_batches(_BATCH, columns=[self.field]):
                # as bytes: strings in Parquet are not checked to be UTF-8 by all that write them
                for value in batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                    row += 1
                    place = f"row {row}"
                    if value is not None:
                        value = decode(value, self.on_bad_document, tally, file=f"{file}:{place}", line=1)
                        if value is None:
                            continue
                    yield from self._accepted(value, tally, file, place)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            kind = table.schema_arrow.field(self.field).type
            raise BadFile(
                f"{file}: the field {self.field!r} holds {kind}, not text; choose another with field=",
                "file without the field",
            ) from error
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BadFile(
                f"{file}: not a whole Parquet file (after row {row}: {reason}); fetch or write it again"
            ) from error
        if row == 0:
            raise _empty(file)


def _empty(file: Path) -> BadFile:
    return BadFile(f"{file}: the file is empty; remove it from the paths, or write it again", "empty file")


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
