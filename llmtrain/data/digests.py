"""Content hashes of files, so that a corpus is known by what is in it and a second start need not read it again."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

from llmtrain.errors import DataError

_BLOCK = 1 << 22


def combine(parts: Iterable[object]) -> str:
    """One xxh3-128 (hex) of several JSON values, in order."""
    return xxhash.xxh3_128_hexdigest(json.dumps(list(parts), sort_keys=True, ensure_ascii=False).encode())


class Digests:
    """xxh3-128 of files, remembered in ``memory`` by (path, size, mtime): an unchanged file is read once, ever."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[int | str]] = {}
        self._changed = False
        if memory.exists():
            try:
                self._known = json.loads(memory.read_text())
            except ValueError:  # torn by a crash; it only saves time, so start it anew
                self._changed = True

    def of(self, file: Path) -> str:
        """The hash (hex) of the content of ``file``."""
        return str(self.entry(file)[1])

    def entry(self, file: Path) -> list[int | str]:
        """Size in bytes and hash of ``file``."""
        try:
            stat = file.stat()
            stamp: list[int | str] = [stat.st_size, stat.st_mtime_ns]
            name = os.path.abspath(file)
            if (known := self._known.get(name)) and known[:2] == stamp:
                return [known[0], known[2]]
            digest = xxhash.xxh3_128()
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); fix the file or its path") from error
        self._known[name] = [*stamp, digest.hexdigest()]
        self._changed = True
        return [stat.st_size, digest.hexdigest()]

    def save(self) -> None:
        """Write what was learned, in one step, where anything was."""
        if self._changed:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            partial = self._memory.with_name(f"{self._memory.name}.{os.getpid()}.tmp")
            partial.write_text(json.dumps(self._known))
            partial.replace(self._memory)
            self._changed = False


def changes(before: Mapping[str, list[int | str]], now: Mapping[str, list[int | str]]) -> list[str]:
    """What differs between two inventories of files, a phrase each; a file that only lies elsewhere does not."""
    moved = {name for name in before if name not in now and before[name] in now.values()}
    said = [
        f"{name} is gone" if name not in now else f"{name} has other content ({_sizes(old, now[name])})"
        for name, old in before.items()
        if name not in moved and old != now.get(name)
    ]
    said += [
        f"{name} is new" for name, entry in now.items() if name not in before and entry not in before.values()
    ]
    if not said and list(before.values()) != list(now.values()):
        said.append("the files come in another order")
    return said


def _sizes(old: list[int | str], new: list[int | str]) -> str:
    return f"{old[0]:,} bytes as before" if old[0] == new[0] else f"{old[0]:,} bytes before, {new[0]:,} now"
