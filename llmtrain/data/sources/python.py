"""The embedded corpus, nothing to download: source and documentation of the running Python's own library."""

import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from llmtrain.config import config
from llmtrain.data.digests import Digests, combine
from llmtrain.data.documents import accept, decode
from llmtrain.data.sources.base import Document, Source, Tally
from llmtrain.errors import DataError

# tables, duplicates and tests, and what is not of the library itself
_LEFT_OUT = {
    "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "distutils",
    "site-packages", "dist-packages", "__pycache__", "lib-dynload",
}  # fmt: skip
_KEPT = (".py", ".txt", ".rst", ".md")

# whole modules and packages, spread over the library, none of which has a near duplicate among the rest
HELD_OUT = frozenset(
    {
        "asyncio/streams.py", "calendar.py", "colorsys.py", "csv.py", "email/header.py", "filecmp.py", "fractions.py",
        "getopt.py", "graphlib.py", "heapq.py", "html/parser.py", "http/cookies.py", "idlelib/codecontext.py",
        "idlelib/replace.py", "json", "logging/handlers.py", "pprint.py", "sched.py", "shlex.py", "textwrap.py",
        "tomllib", "unittest/suite.py", "urllib/robotparser.py", "xml/dom/pulldom.py", "zipapp.py",
    }
)  # fmt: skip


@config
class StandardLibrary(Source):
    """About 10 MB of Python and prose in a fixed order; a fixed list of modules is held out for validation."""

    def files(self) -> list[str]:
        """Paths within the library, sorted. Raises DataError where the library is no folder of source files."""
        root = _root()
        found = []
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s not in _LEFT_OUT and not s.startswith("config-")]
            # _sysconfigdata holds the flags and paths of one build
            kept = (n for n in names if n.endswith(_KEPT) and not n.startswith("_sysconfigdata"))
            found += [(Path(folder) / name).relative_to(root).as_posix() for name in kept]
        if not any(name.endswith(".py") for name in found):
            raise DataError(
                f"{root}: this Python's standard library is not there as source files (a zipped or stripped "
                "installation); run under a full CPython, or train on files of your own with data=text"
            )
        return sorted(found)

    def documents(self, tally: Tally) -> Iterator[Document]:
        for name in self.files():
            try:
                raw = (_root() / name).read_bytes()
            except OSError as error:
                raise DataError(
                    f"{_root() / name}: cannot be read ({error.strerror}); repair this Python"
                ) from error
            if not raw.strip():  # the empty __init__.py of many packages: no news to the user
                continue
            text = decode(raw, "replace", tally, file=name, line=1)
            assert text is not None, "what is replaced is not dropped"
            if document := accept(text, "skip", tally, file=name, place="1"):
                yield document

    def fingerprint(self, digests: Digests) -> str:
        held_out = sorted(HELD_OUT)
        return combine([held_out, *((name, digests.of(_root() / name)) for name in self.files())])

    def inventory(self, digests: Digests) -> dict[str, list[int | str]]:
        return {name: digests.entry(_root() / name) for name in self.files()}

    def held_out(self, document: Document) -> bool:
        path = Path(document.file)
        return any(p.as_posix() in HELD_OUT for p in (path, *path.parents))


@cache
def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))
