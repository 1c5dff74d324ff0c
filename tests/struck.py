"""The real command in processes of its own, struck by faults, and whether its run came out whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain import cli, faults
from llmtrain.checkpoint import background
from processes import Child, forked
from runs import metrics, overrides, weights

STEPS = 12
CHANGES: dict[str, Any] = {
    "seq_len": 64, "steps": STEPS, "checkpoint__every": 3, "eval__samples": 0, "eval__rows": 4, "eval__every": 5,
}  # fmt: skip


@contextlib.contextmanager
def started(home: Path, name: str, fault: str = "", **changes: object) -> Iterator[Child]:
    words = overrides(home, name=name, **(CHANGES | changes))

    def run() -> int:
        os.environ[faults.VARIABLE] = fault
        background.PAUSE = 0.1
        return cli.main(words)

    with forked(run) as child:
        yield child


def command(home: Path, name: str, fault: str = "", **changes: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the real command in a process of its own."""
    with started(home, name, fault, **changes) as child:
        return child.ended()


def assert_whole(home: Path, name: str) -> None:
    assert metrics(home / "runs" / name) == metrics(home / "runs" / "whole")
    assert weights(home / "runs" / name, STEPS) == weights(home / "runs" / "whole", STEPS)


def the_error(err: str) -> str:
    """The one line in which a command says why it ended."""
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line
