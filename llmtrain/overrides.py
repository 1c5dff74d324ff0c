"""The words ``key=value`` of a command line, read into keys and typed values."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmtrain.errors import ConfigError
from llmtrain.typos import nearest

# always text, even where it looks like a number: name=001
TEXT = re.compile(r"(name|init_from|runs|labels\..*)")
KEY = re.compile(r"[\w./\-\[\]]+")
PAIRS = {"[": "]", "{": "}", "(": ")"}


class Override(NamedTuple):
    key: str
    value: Any
    removes: bool = False  # ~key: takes a name out of a mapping


def parse(words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[Override]:
    """Each word as an override; values are read as Hydra reads them, and what it cannot read is text.

    ``groups`` are the config groups with their choices. Raises ConfigError for what is no KEY=VALUE, showing the
    right form.
    """
    return [_parse(i, words, groups) for i in range(len(words))]


def _parse(i: int, words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Override:
    word = words[i]
    marked, equals, text = word.partition("=")
    key = marked.strip().lstrip("+~")
    removes = marked.startswith("~")
    if not equals and not removes:
        raise ConfigError(f"{word!r} is not KEY=VALUE: {_meant(i, words, groups)}")
    if not KEY.fullmatch(key):
        example = f"as in seed={text}" if text and not key else "as in optim.lr=0.001"
        raise ConfigError(f"{word!r} has no valid key before the =: write KEY=VALUE, {example}")
    if _unbalanced(text):
        whole = _closed(i, words)
        raise ConfigError(
            f"{word!r} opens a bracket or a quote that it does not close: write it as one word, {whole}"
        )
    if removes:
        return Override(key, None, removes=True)
    if (key in groups and not text.startswith("{")) or TEXT.fullmatch(key):
        return Override(key, _text(text))
    return Override(key, _value(key, text))


def _value(key: str, text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        # its grammar knows no characters beyond ASCII and few signs: a path with them is text, a list with them YAML
        return _yaml(key, text) if text.startswith(("[", "{")) else text
    if override.is_sweep_override():
        raise ConfigError(
            f"{key}={text} gives several values, and one command is one run: write a list as {key}=[{text}]"
        )
    return override.value()


def _yaml(key: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"{key}={text} cannot be read: write lists as [a,b], mappings as {{a: 1}}, quote odd names"
        ) from None


def _text(text: str) -> str | None:
    if text in {"null", ""}:
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _meant(i: int, words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    """What a word without ``=`` was probably meant to be."""
    word, after = words[i], words[i + 1 :]
    if after and after[0].startswith("="):
        return f"write {word}{''.join(after[:2]) if after[0] == '=' else after[0]} without spaces"
    if word in groups:
        return f"write {word}=CHOICE, one of {', '.join(groups[word])}"
    for group, choices in groups.items():
        if near := nearest(word, choices) if len(word) > 3 else [c for c in choices if c == word]:
            return f"did you mean {group}={near[0]}?"
    return "write for example seed=1"


def _unbalanced(text: str) -> bool:
    quote, opened = "", list[str]()
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"" and (opened or text[0] == c):  # not the apostrophe of a plain word
            quote = c
        elif c in PAIRS and (opened or text[0] == c):  # not the bracket of a plain word
            opened.append(PAIRS[c])
        elif opened and c == opened[-1]:
            opened.pop()
    return bool(quote or opened)


def _closed(i: int, words: Sequence[str]) -> str:
    """The word with those after it that close its bracket, or with the bracket closed, quoted for a shell."""
    for end in range(i + 1, len(words) + 1):
        if not _unbalanced(" ".join(words[i:end]).partition("=")[2]):
            return shlex.quote(" ".join(words[i:end]))
    text = words[i].partition("=")[2]
    return shlex.quote(words[i].rstrip(",") + PAIRS.get(text[0], text[0]))
