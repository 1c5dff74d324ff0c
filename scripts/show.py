"""Print training examples as the objective makes them: ``python scripts/show.py experiment=clm_dense rows=2``.

Takes the overrides of train.py and, of its own, rows=N: the first N rows of the run (2), or rows=A-B: those from A to
B. Every stream of tokens is a table with a line for each position; pieces are quoted, so that spaces show, and what is
not scored has no target.
"""

import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmtrain.cli import guarded

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from llmtrain.types import Seq

Piece = Callable[[int], str]  # what an id stands for


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    return guarded(lambda: show(sys.argv[1:]))


def show(words: list[str]) -> None:
    from rich.console import Console

    from llmtrain.callbacks.display import preparing
    from llmtrain.compose import run_from
    from llmtrain.data.prepare import prepare
    from llmtrain.errors import ConfigError
    from llmtrain.setup import set_up
    from llmtrain.types import IGNORE

    own = [word.removeprefix("rows=") for word in words if word.startswith("rows=")]
    n = own[-1] if own else "2"
    given = re.fullmatch(r"(?:(\d+)-)?(\d+)", n)
    if not given:
        raise ConfigError(f"rows={n} must be a whole number, how many rows to show, or two, as in rows=24-27")
    numbers = range(int(n)) if given[1] is None else range(int(given[1]), int(given[2]) + 1)
    run = run_from([word for word in words if not word.startswith("rows=")])
    with preparing(show=True) as progress:
        prepared = prepare(run.data, run.tokenizer, progress=progress)
    examples = set_up(run, prepared).examples()
    decode = prepared.tokenizer.decode
    console = Console(highlight=False, markup=False, emoji=False)
    for k in numbers:
        part, epoch, row = examples.stream.locate(k)
        console.print(f"row {k}: row {row} of {prepared.train[part].name} in epoch {epoch}")
        for found in rendered(
            examples[k], lambda i: "" if i == IGNORE else repr(decode([i], show_reserved=True))
        ):
            console.print(found)


def rendered(example: Any, piece: Piece, name: str = "") -> Iterator["Table | str"]:
    """The parts of an example, a tree of tuples of arrays: a table a stream, with the arrays that run beside it.

    An array beside several streams of its length goes with the last, which is the one that is predicted.
    """
    import numpy as np

    from llmtrain.types import IGNORE, Seq

    if isinstance(example, Seq):
        example = {"": example}
    elif isinstance(example, tuple):
        example = example._asdict() if hasattr(example, "_asdict") else dict(enumerate(example))
    if {"at", "targets", "text"} <= example.keys():  # targets of some positions alone
        known = example["targets"] != IGNORE
        full = np.full(example["text"].ids.shape, IGNORE)
        full[example["at"][known]] = example["targets"][known]
        example = {key: value for key, value in example.items() if key != "at"} | {"targets": full}
    streams = {key: value for key, value in example.items() if isinstance(value, Seq)}
    beside: dict[str, dict[str, list[str]]] = {key: {} for key in streams}
    others: list[Table | str] = []
    for key, value in example.items():
        if key in streams:
            continue
        if isinstance(value, tuple):
            others += rendered(value, piece, f"{name}{key}.")
            continue
        fits = [stream for stream, seq in streams.items() if seq.ids.shape == value.shape]
        cells = column(key, value, piece)
        if fits:
            beside[fits[-1]][key] = cells
        else:
            others.append(f"{name}{key}: {' '.join(cells)}")
    for key, seq in streams.items():
        yield table(f"{name}{key}", seq, beside[key], piece)
    yield from others


def column(name: str, values: "np.ndarray", piece: Piece) -> list[str]:
    """Targets are shown as pieces, whatever else there is as it is."""
    return [piece(int(value)) if name == "targets" else str(value) for value in values.reshape(-1).tolist()]


def table(title: str, seq: "Seq", beside: dict[str, list[str]], piece: Piece) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    ids, doc, pos, prefix = (values.tolist() for values in seq)
    columns = {
        "id": [str(i) for i in ids],
        "doc": [str(d) for d in doc],
        "pos": [str(p) for p in pos],
        "prefix": ["yes" if seen else "" for seen in prefix],
        "piece": [piece(i) for i in ids],
    }
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", *columns, *beside):
        text = name in ("piece", *beside)
        shown.add_column("target" if name == "targets" else name, justify="left" if text else "right")
    for i, cells in enumerate(zip(*columns.values(), *beside.values(), strict=True)):
        shown.add_row(str(i), *(Text(cell) for cell in cells))
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
