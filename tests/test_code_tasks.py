"""Tasks of the embedded corpus: labels are what the parser says, and splits share no file."""

import ast
import sysconfig
from pathlib import Path

import pytest

from llmtrain.evaluation import names
from llmtrain.evaluation.base import Document, HeldOutTexts
from llmtrain.evaluation.docstrings import docstring_retrieval
from llmtrain.evaluation.kinds import text_kinds
from llmtrain.evaluation.names import name_roles
from llmtrain.evaluation.nearby import continuations, modules
from llmtrain.evaluation.python_source import python_files
from llmtrain.evaluation.tasks import Pair, splits, windows_of

LIBRARY = Path(sysconfig.get_path("stdlib"))
FILES = [
    f"{folder}/{name}.py"
    for folder, modules_of in {
        "json": ("decoder", "encoder", "scanner", "tool"),
        "email": ("header", "message", "charset", "utils"),
    }.items()
    for name in modules_of
] + ["textwrap.py", "heapq.py", "csv.py", "shlex.py"]


@pytest.fixture(scope="module")
def texts() -> HeldOutTexts:
    documents = [Document(name, (LIBRARY / name).read_text(encoding="utf-8")) for name in FILES]
    parts = [documents[i::4] for i in range(4)]
    return HeldOutTexts((*parts[0], *parts[3]), tuple(parts[1]), tuple(parts[2]))


SOURCE = '''
import os.path as p
from a import b

class Étude(Base):
    """A class of some sort, with a docstring."""

    def play(self, né, *, loud=True):
        self.volume = p.join(né, sep=loud)
        return self.play(né).done
'''


def test_the_role_of_a_name_is_what_the_parser_says(monkeypatch):
    monkeypatch.setattr(names, "_NAMES", 100)
    source = Document("m.py", SOURCE)
    task = name_roles(python_files(HeldOutTexts((source,), (), ())), n_bytes=1000, train=100, dev=9, test=9)
    found = [(e.input.text[slice(*e.input.span)], e.label) for e in task.train]
    assert all(e.type == name for e, (name, _) in zip(task.train, found, strict=True))
    assert found == [
        ("os", "imported"), ("b", "imported"), ("Étude", "class"), ("Base", "loaded"), ("play", "function"),
        ("self", "parameter"), ("né", "parameter"), ("loud", "parameter"), ("self", "loaded"), ("volume", "attribute"),
        ("p", "loaded"), ("join", "method"), ("né", "loaded"), ("sep", "keyword"), ("loud", "loaded"),
        ("self", "loaded"), ("play", "method"), ("né", "loaded"), ("done", "attribute"),
    ]  # fmt: skip


def test_a_docstring_seeks_its_function_without_docstring_and_name():
    (pair,) = docstring_retrieval(
        python_files(
            HeldOutTexts(
                (),
                (),
                (
                    Document(
                        "m.py",
                        '''
class A:
    @deco
    def parse(self, x):
        """Parse what is given, and all that follows from it."""
        return self.parse(x[1:])

    def short(self):
        """Too short."""
        return 1
''',
                    ),
                ),
            )
        ),
        10,
    ).test
    assert pair.first == "Parse what is given, and all that follows from it."
    assert pair.second == "def _(self, x):\n    return self._(x[1:])\n"
    assert pair.group == "m.py"


def test_functions_of_the_library_are_whole_python(texts):
    pairs = docstring_retrieval(python_files(texts), 1000).test
    assert len(pairs) > 50
    for pair in pairs:
        ast.parse(pair.second)
        assert pair.first not in pair.second


def test_comments_docstrings_and_code_carry_no_mark_of_their_kind(texts):
    task = text_kinds(python_files(texts), n_bytes=256, train=300, dev=9, test=9)
    by_label = {
        label: [e.input.text for e in task.train if e.label == label]
        for label in ("comment", "docstring", "code")
    }
    assert min(map(len, by_label.values())) > 10
    assert not any(text.startswith("#") for text in by_label["comment"])
    assert not any('"""' in text for text in by_label["docstring"])
    assert not any("#" in text or '"' in text for text in by_label["code"])
    assert not any(text != text.lstrip() for found in by_label.values() for text in found)
    assert all(len(text.encode()) <= 256 for texts in by_label.values() for text in texts)


def test_length_does_not_tell_comments_docstrings_and_code(texts):
    task = text_kinds(python_files(texts), n_bytes=256, train=9999, dev=9, test=9)
    for turn in zip(*(task.train[i::3] for i in range(3)), strict=True):
        assert {e.label for e in turn} == {"comment", "docstring", "code"}
        lengths = [len(e.input.text.encode()) for e in turn]
        assert max(lengths) - min(lengths) <= 3  # a character is not cut


def test_no_file_is_in_two_splits(texts):
    files = python_files(texts)
    size = {"n_bytes": 256, "train": 200, "dev": 50, "test": 100}
    for task in (
        docstring_retrieval(files, 100),
        name_roles(files, **size),
        text_kinds(files, **size),
        continuations(texts, n_bytes=256, dev=50, test=100),
        modules(texts, **size),
    ):
        groups = [{item.group for item in items} for items in splits(task).values()]
        assert all(groups), task.name
        assert sum(map(len, groups)) == len(set.union(*groups)), task.name
        ids = [item.id for items in splits(task).values() for item in items]
        assert len(ids) == len(set(ids)), task.name


def test_modules_are_folders_that_every_split_has(texts):
    task = modules(texts, n_bytes=256, train=200, dev=50, test=100)
    assert not task.summary and "contrastive" in task.note
    assert {e.label for e in task.train} == {e.label for e in task.test} == {"json", "email"}


def test_windows_lie_in_the_text_where_they_say(texts):
    text = texts.train[0].text + "x" * 600 + "\n\n\nend\n"
    found = list(windows_of(text, 256))
    assert all(text[at:].startswith(window) and len(window.encode()) <= 256 for at, window in found)
    kept = "".join(window for _, window in found).replace("\n", "")
    assert (
        len(text.replace("\n", "")) - len(kept) == 600 - 256
    )  # the line that is longer than a window is cut


def test_continuations_follow_and_no_window_is_used_twice(texts):
    pairs = continuations(texts, n_bytes=200, dev=9, test=100).test
    whole = {document.file: document.text for part in texts for document in part}
    for pair in pairs:
        of = whole[pair.group]
        assert of.index(pair.second, of.index(pair.first) + len(pair.first)) - of.index(pair.first) < 220
    used = [text for pair in pairs for text in (pair.first, pair.second)]
    assert len(used) == len(set(used)) and isinstance(pairs[0], Pair)


def test_code_that_is_deep_within_blocks_is_read_too():
    source = 'def f():\n    """Return what there is to return."""\n    # what follows is deep\n' + "".join(
        "    " * n + "if first_name_of_many:\n" for n in range(1, 15)
    )
    documents = (Document("deep.py", source + "    " * 15 + "pass\n"),)
    task = text_kinds(python_files(HeldOutTexts(documents, (), ())), n_bytes=64, train=9, dev=9, test=9)
    assert [e.label for e in task.train] == ["comment", "docstring", "code"]
    assert all(e.input.text.strip() for e in task.train)
