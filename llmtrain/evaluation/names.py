"""The syntactic role of a name: what a NAME token of Python does where it stands, as the parser sees it."""

import ast
import bisect
import keyword
import tokenize
from collections.abc import Iterable, Iterator
from itertools import accumulate

from llmtrain.evaluation.python_source import Parsed, PythonFiles
from llmtrain.evaluation.tasks import Classification, Example, Input, at_most, windows_of

_NAMES = 6  # of a window, at most
Place = tuple[int, int]  # line from 1, column in bytes of UTF-8


def name_roles(files: PythonFiles, *, n_bytes: int, train: int, dev: int, test: int) -> Classification:
    """Names in windows of ``n_bytes``, in which they are seen: their roles are those in the whole file."""
    return Classification(
        "name_role",
        train=_spread(files.train, n_bytes, train),
        dev=_spread(files.dev, n_bytes, dev),
        test=_spread(files.test, n_bytes, test),
    )


def _spread(sources: Iterable[Parsed], n_bytes: int, most: int) -> tuple[Example, ...]:
    """Of windows spread over all files, the names in each: a window is read once, however many are asked about."""
    by_window: dict[Input, list[Example]] = {}
    for example in _examples(sources, n_bytes):
        by_window.setdefault(Input(example.input.text), []).append(example)
    chosen = at_most(by_window.values(), -(-most // _NAMES))
    return at_most([example for names in chosen for example in at_most(names, _NAMES)], most)


def _examples(sources: Iterable[Parsed], n_bytes: int) -> Iterator[Example]:
    for source in sources:
        windows = list(windows_of(source.text, n_bytes))
        starts = [start for start, _ in windows]
        for at, name, role in _names(source):
            start, window = windows[bisect.bisect_right(starts, at) - 1]
            span = at - start, at - start + len(name)
            if span[0] >= 0 and span[1] <= len(window):  # else it was cut off a long line
                yield Example(f"{source.id}:{at}", source.file, Input(window, span), role, name)


def _names(source: Parsed) -> Iterator[tuple[int, str, str]]:
    """(first character, name, role) of every name whose role is one of those below."""
    role_at = dict(_roles(source.tree))
    begins = [0, *accumulate(map(len, source.lines))]
    defining = ""
    for token in source.tokens:
        if token.type != tokenize.NAME:
            continue
        line, column = token.start
        if keyword.iskeyword(token.string):
            defining = {"def": "function", "class": "class"}.get(token.string, "")
            continue
        role = defining or role_at.get((line, len(source.lines[line - 1][:column].encode())))
        defining = ""
        if role:
            yield begins[line - 1] + column, token.string, role


def _roles(tree: ast.AST) -> Iterator[tuple[Place, str]]:
    """Where names stand that the tree knows: all but those of definitions, whose place it does not tell."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(ctx=ast.Store()):
                yield (node.lineno, node.col_offset), "stored"
            case ast.Name(ctx=ast.Load()):
                yield (node.lineno, node.col_offset), "called" if id(node) in called else "loaded"
            case ast.Attribute(end_lineno=int(line), end_col_offset=int(end)):
                role = "method" if id(node) in called else "attribute"
                yield (line, end - len(node.attr.encode())), role
            case ast.arg():
                yield (node.lineno, node.col_offset), "parameter"
            case ast.keyword(arg=str()):
                yield (node.lineno, node.col_offset), "keyword"
            case ast.alias():
                yield (node.lineno, node.col_offset), "imported"
