"""Docstring to function: which body was meant, once its name is gone."""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator

from llmtrain.evaluation.python_source import Parsed, PythonFiles
from llmtrain.evaluation.tasks import Pair, Retrieval, at_most

_SHORTEST = 30  # characters of a docstring that says something


def docstring_retrieval(files: PythonFiles, most: int) -> Retrieval:
    """Functions and methods with their docstrings; nothing is trained, so the files of train are tested too."""
    return Retrieval(
        "docstring_to_function",
        dev=at_most(_pairs(files.dev), most),
        test=at_most(_pairs((*files.train, *files.test)), most),
    )


def _pairs(sources: Iterable[Parsed]) -> Iterator[Pair]:
    """The first pair of each docstring and of each body: what stands twice has no one partner."""
    seen: set[str] = set()
    for source in sources:
        for number, (doc, body) in enumerate(_functions(source)):
            if doc not in seen and body not in seen:
                seen |= {doc, body}
                yield Pair(f"{source.id}:{number}", source.file, doc, body)


def _functions(source: Parsed) -> Iterator[tuple[str, str]]:
    """(docstring, source without the docstring and with the name replaced) of every documented function."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = ast.get_docstring(node)
        if doc is None or len(doc) < _SHORTEST or len(node.body) < 2:
            continue
        held = node.body[0]
        assert held.end_lineno is not None and node.end_lineno is not None, (
            "the parser says where a node ends"
        )
        kept = (
            source.lines[node.lineno - 1 : held.lineno - 1] + source.lines[held.end_lineno : node.end_lineno]
        )
        code = re.sub(rf"\b{re.escape(node.name)}\b", "_", "".join(kept))
        yield doc, textwrap.dedent(code)
