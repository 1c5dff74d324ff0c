"""Text of others inside Markdown: shown as it is, whatever it holds."""

import re

# an underscore within a word is only that
_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


def inline(text: str) -> str:
    """``text`` as plain words of a line: no tag, no link, no emphasis, no table cell comes of it."""
    escaped = _SPECIAL.sub(lambda m: "\\" + m[0], visible(" ".join(text.split())))
    return "".join(_HTML.get(c, c) for c in escaped)


def fenced(text: str) -> str:
    """``text`` as a block of code, behind a fence that is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, 1 + longest)
    return f"{fence}text\n{visible(text)}\n{fence}"


def visible(text: str) -> str:
    """Control characters, which a terminal would obey, as U+XXXX; tabs and newlines stay."""
    return _CONTROL.sub(lambda m: f"<U+{ord(m[0]):04X}>", text)
