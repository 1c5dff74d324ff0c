"""Whether the learning rates of a sweep are the best ones, as far as its trials say; read without torch."""

import json
from pathlib import Path

from llmtrain.errors import ConfigError

TUNING = "tuning.json"


def tuning_in(folder: Path) -> dict[str, object] | None:
    """What a sweep's trials found; none where none were made. A folder within a sweep's, as its cells, is the sweep's.

    That of a comparison is another file of the same name: its rates are each series' own, and no rule is made of them.
    """
    for home in (folder, folder.parent):
        path = home / TUNING
        if path.is_file():
            found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
            return found if "on_an_edge" in found else None
    return None


def check_edges(folder: Path, *, force: bool) -> None:
    """Raises ConfigError where a best learning rate may lie beyond those tried, unless ``force`` says it is known.

    A law of such runs is of their rates as much as of their sizes.
    """
    found = tuning_in(folder)
    on_edge = found["on_an_edge"] if found else None
    if isinstance(on_edge, list) and on_edge and not force:
        raise ConfigError(
            f"{folder}: the best learning rate of {', '.join(map(str, on_edge))} is the last that was tried, so a "
            "better one may lie beyond: the sweep's command with a larger sweep.tuning.widen tries further ones, or go "
            "on all the same with --force"
        )
