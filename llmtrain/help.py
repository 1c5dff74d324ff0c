"""The text of ``python train.py --help``, read from the YAML files alone."""

import re
from pathlib import Path
from typing import NamedTuple

from llmtrain.compose import CONFIGS, choices, defaults

USAGE = """\
usage: python train.py [experiment=NAME] [group=CHOICE ...] [key=value ...]
       python train.py --cfg [...]    print the config that this makes, and stop
       python train.py --help
"""
EXAMPLES = """\
examples
  python train.py                                             experiment=quickstart
  python train.py experiment=clm_dense size=d6 name=first     a larger model, into runs/first/
  python train.py name=short steps=60 seed=1                  another length, another seed
  python train.py data=text 'data.source.paths=[notes/, a.jsonl.zst]'
  python train.py size=d24 trainer.devices=64 dry_run=true    what it would take: memory, messages, days
  python train.py size=n size.n=300e3 model.layers.0.mixer.window=64
The same command again continues an interrupted run. Values are written as in YAML; the last of two wins.
"""
EXIT_CODES = """\
exit codes
  0 done   2 config   3 data   4 numbers not finite   5 storage   75 try again   130, 143 stopped by a signal (saved)
"""
COMPACT = 8  # a group of more choices than this is listed on one line, without what each of them is


class Entry(NamedTuple):
    """A line ``key: value # comment`` of a YAML file."""

    key: str  # dotted
    value: str
    comment: str


def help_text() -> str:
    groups, standing = choices(), defaults()
    parts = [USAGE, "experiments", *_choices("experiment", groups["experiment"])]
    parts += [
        "",
        "groups (in brackets the default; an experiment may choose another)",
    ]
    for group, names in groups.items():
        if group != "experiment":
            parts += [f"  {group} [{standing[group]}]", *(f"  {line}" for line in _choices(group, names))]
    parts += ["", "keys (and those of the groups, as in optim.lr=0.01: --cfg shows them all)"]
    entries = [e for e in entries_of(CONFIGS / "train.yaml") if not e.key.startswith(("_", "defaults"))]
    parts += _columns([(f"{e.key}={e.value}", e.comment) for e in entries])
    return "\n".join([*parts, "", EXAMPLES, EXIT_CODES]).rstrip()


def description(path: Path) -> str:
    """What a YAML file says of itself: its first comment that is no directive."""
    lines = path.read_text(encoding="utf-8").splitlines()
    said = (line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return next((line for line in said if not line.startswith("@")), "").rstrip(".")


def entries_of(path: Path) -> list[Entry]:
    """The values of a YAML file in block style, with the comment that ends their line."""
    entries, parents = [], list[tuple[int, str]]()
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"( *)(\w+):(?: +([^#\s].*?))?(?: +# *(.*))?", line)
        if not found:
            continue
        indent, name, value, comment = len(found[1]), found[2], found[3], found[4]
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        if value is None:
            parents.append((indent, name))
        elif not name.startswith("_"):
            key = ".".join([*(parent for _, parent in parents), name])
            entries.append(Entry(key, value, comment or ""))
    return entries


def _choices(group: str, names: list[str]) -> list[str]:
    if len(names) > COMPACT:
        return [f"  {' '.join(names)}"]
    return _columns([(name, description(CONFIGS / group / f"{name}.yaml")) for name in names])


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]
