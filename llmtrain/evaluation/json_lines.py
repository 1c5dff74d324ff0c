"""Labelled items out of JSON lines, plain or compressed, each checked to have its fields."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.data.sources.files import lines
from llmtrain.errors import DataError


def json_lines(path: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects in ``path``, in their order. Raises DataError naming the line for what is no such object."""
    found = []
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{where}: the line is not JSON; write one JSON object a line") from None
        for name, kind in fields.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, kind):
                wanted = ", ".join(f'"{key}": {_SAID[of]}' for key, of in fields.items())
                raise DataError(f"{where}: every line must have {{{wanted}}}, and {name} is {value!r}")
        found.append(row)
    if not found:
        raise DataError(f"{path}: there is no line in it")
    return found


_SAID = {str: "text", int: "a number", list: "a list"}
