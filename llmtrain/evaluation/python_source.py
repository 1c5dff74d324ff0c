"""Python files as their parser sees them: what the yardsticks of the embedded corpus take their labels from."""

import ast
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llmtrain.evaluation.base import Document, HeldOutTexts


class Parsed(NamedTuple):
    id: str  # of the document, of which a file may have several
    file: str
    text: str
    lines: list[str]  # with their ends; by "\n" alone, as the parser counts them
    tree: ast.Module
    tokens: list[tokenize.TokenInfo]


class PythonFiles(NamedTuple):
    """Of held-out texts, what is Python."""

    train: tuple[Parsed, ...]
    dev: tuple[Parsed, ...]
    test: tuple[Parsed, ...]


def python_files(texts: HeldOutTexts) -> PythonFiles:
    return PythonFiles(*(tuple(_parsed(part)) for part in texts))


def _parsed(documents: Iterable[Document]) -> Iterator[Parsed]:
    """Those that are Python, and whole: not a section cut out of a longer file, nor Python of another version."""
    for number, (file, text) in enumerate(documents):
        if not file.endswith(".py"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of escapes that the author got away with
                tree = ast.parse(text)
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (SyntaxError, ValueError, tokenize.TokenError):
            continue
        yield Parsed(f"{file}:{number}", file, text, io.StringIO(text).readlines(), tree, tokens)
