"""One start of the real command: in a fork of this process, which has imported everything, or in a fresh interpreter.

Either way a start also notes, one line a row, which rows it trains on.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from llmtrain import faults

ROWS = "LLMTRAIN_CAMPAIGN_ROWS"  # the file that the rows of a start are noted in


class End(NamedTuple):
    code: int  # negative: by that signal
    seconds: float
    said: str  # stdout and stderr together


def command(words: Sequence[str]) -> int:
    """``train.py``, with a note of each row that it trains on."""
    from llmtrain import cli
    from llmtrain.data.examples import RankRows

    notes = os.open(os.environ[ROWS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    hand_out = RankRows.__iter__

    def noted(self: RankRows) -> Iterator[int]:
        for row in hand_out(self):
            os.write(notes, f"{row}\n".encode())
            yield row

    RankRows.__iter__ = noted  # type: ignore[method-assign]
    return cli.main(list(words))


def start(
    words: Sequence[str],
    *,
    rows: Path,
    log: Path,
    fault: str = "",
    kill_after: float | None = None,
    fresh: bool = False,
) -> End:
    """Run the command to its end, or until it is killed ``kill_after`` seconds later."""
    env = os.environ | {faults.VARIABLE: fault, ROWS: str(rows)}
    begun = time.monotonic()
    with log.open("wb") as said:
        pid = _fresh(words, env, said.fileno()) if fresh else _fork(words, env, said.fileno())
        if kill_after is not None:
            _wait(pid, kill_after)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return End(
        os.waitstatus_to_exitcode(status),
        time.monotonic() - begun,
        log.read_text(encoding="utf-8", errors="replace"),
    )


def _wait(pid: int, seconds: float) -> None:
    """Until then, or until the process has ended, which stays to be reaped."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(min(left, 0.005))


def _fork(words: Sequence[str], env: dict[str, str], out: int) -> int:
    if pid := os.fork():
        return pid
    _child(words, env, out)


def _child(words: Sequence[str], env: dict[str, str], out: int) -> NoReturn:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        code = command(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the campaign's runs here


def _fresh(words: Sequence[str], env: dict[str, str], out: int) -> int:
    code = "import sys; from llmtrain.campaign.starts import command; sys.exit(command(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *words], env=env, stdout=out, stderr=out).pid
