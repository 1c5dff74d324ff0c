"""Comment, docstring or code: which of the three a short text of a Python file is, its marks taken off."""

import ast
import textwrap
import tokenize
from collections.abc import Iterable, Iterator

from llmtrain.evaluation.python_source import Parsed, PythonFiles
from llmtrain.evaluation.tasks import Classification, Example, Input, at_most, windows_of

_SHORTEST = 20  # characters
_TOLD = {"COMMENT", "STRING", "FSTRING_START"}  # the last from Python 3.12 on


def text_kinds(files: PythonFiles, *, n_bytes: int, train: int, dev: int, test: int) -> Classification:
    """As many of each, and as long: the three take turns in every file, for as long as it has all of them.

    The texts of a turn are cut to the bytes of the shortest, and to ``n_bytes``: length tells nothing.
    """
    return Classification(
        "text_kind",
        train=at_most(_examples(files.train, n_bytes), train),
        dev=at_most(_examples(files.dev, n_bytes), dev),
        test=at_most(_examples(files.test, n_bytes), test),
    )


def _examples(sources: Iterable[Parsed], n_bytes: int) -> Iterator[Example]:
    seen: set[str] = set()
    for source in sources:
        kinds = {
            "comment": _comments(source),
            "docstring": _docstrings(source),
            "code": _code(source, n_bytes),
        }
        # a text of each kind in turn, for as long as the file has all three
        for number, turn in enumerate(zip(*kinds.values(), strict=False)):
            shortest = min(n_bytes, *(len(text.encode()) for text in turn))
            texts = [text.encode()[:shortest].decode(errors="ignore") for text in turn]
            if seen.isdisjoint(texts):
                seen.update(texts)
                for kind, text in zip(kinds, texts, strict=True):
                    first = text.split(maxsplit=1)[0]
                    yield Example(f"{source.id}:{number}:{kind}", source.file, Input(text), kind, first)


def _comments(source: Parsed) -> list[str]:
    """Comments without their ``#``, those on lines that follow one another as one text."""
    out: list[str] = []
    last = -1
    for token in source.tokens:
        if token.type != tokenize.COMMENT:
            continue
        text, line = token.string.lstrip("#! \t"), token.start[0]
        if line == last + 1:
            out[-1] += "\n" + text
        else:
            out.append(text)
        last = line
    return [text.strip() for text in out if _says(text.strip())]


def _docstrings(source: Parsed) -> list[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = (ast.get_docstring(node) for node in ast.walk(source.tree) if isinstance(node, documented))
    return [text.strip() for text in found if text is not None and _says(text.strip())]


def _code(source: Parsed, n_bytes: int) -> list[str]:
    """Windows of the lines that hold neither comment nor string, without the indentation that all have."""
    told = {
        n
        for t in source.tokens
        if tokenize.tok_name[t.type] in _TOLD
        for n in range(t.start[0], t.end[0] + 1)
    }
    bare = "".join(line for number, line in enumerate(source.lines, 1) if number not in told)
    windows = (textwrap.dedent(text).strip() for _, text in windows_of(bare, n_bytes))
    return [text for text in windows if _says(text)]


def _says(text: str) -> bool:
    return len(text) >= _SHORTEST and sum(map(str.isalpha, text)) * 2 >= len(text)
