"""Cells of a plan run to their end, each a process of its own: what is finished is not run again."""

import math
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from llmtrain.callbacks.display import duration
from llmtrain.errors import EXIT_CODES, ConfigError, Retry, UserError
from llmtrain.sweep.cells import Cell
from llmtrain.sweep.pool import Ended, Job, Pool, last_line
from llmtrain.sweep.status import FAILED, State, log_of, loss_of, status_of

_DONE = frozenset({State.FINISHED, State.DIVERGED})
_STOPPED = frozenset({*EXIT_CODES.values(), -signal.SIGINT, -signal.SIGTERM})  # by a signal


class CellsFailed(UserError):
    """Some cells could not be trained; those that were are kept. ``exit_code`` is that of the first of them."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Runner:
    """Runs cells in ``folder``. What is finished is never run again; what was interrupted goes on."""

    def __init__(self, folder: Path, pool: Pool, say: Callable[[str], None] = print):
        self.folder, self.pool, self.say = folder, pool, say
        shutil.rmtree(folder / FAILED, ignore_errors=True)  # a new start tries them again

    def run(self, cells: Sequence[Cell]) -> None:
        """Train what is not finished, the longest first.

        Raises CellsFailed at the end where some could not be, or were stopped by others: nothing goes on without them.
        """
        waiting = [c for c in cells if status_of(c, self.folder).state in {State.WAITING, State.STARTED}]
        waiting.sort(key=lambda c: -(c.seconds or float(c.flops)))
        by_id = {cell.id: cell for cell in waiting}
        done = len(cells) - len(waiting)

        def ended(one: Ended) -> None:
            nonlocal done
            done += self._ended(by_id[one.job.id], one)
            left = len(cells) - done
            self.say(f"{one.job.id}: {self._said(by_id[one.job.id], one)} ({left} left)")

        self.pool.run([self._job(cell) for cell in waiting], lambda job: None, ended)
        missing = [s for s in (status_of(c, self.folder) for c in cells) if s.state not in _DONE]
        missing.sort(key=lambda s: s.state is not State.FAILED)  # what failed before what was stopped
        if missing:
            first, more = missing[0].cell, f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            path = log_of(first, self.folder)
            raise CellsFailed(
                f"{first.id}{more} could not be trained: {last_line(path).removeprefix('error: ')}; see {path}; the "
                "same command tries again",
                self._exit_code(first),
            )

    def _exit_code(self, cell: Cell) -> int:
        """Of a cell that is not done with; what was stopped or killed may be tried again."""
        marker = self.folder / FAILED / cell.id
        code = int(marker.read_text(encoding="utf-8")) if marker.exists() else Retry.exit_code
        return code if code > 0 else Retry.exit_code

    def _job(self, cell: Cell) -> Job:
        return Job(cell.id, tuple(cell.command(self.folder)), log_of(cell, self.folder))

    def _ended(self, cell: Cell, one: Ended) -> bool:
        """Whether the cell is done with."""
        state = status_of(cell, self.folder).state
        if state in _DONE:
            return True
        if one.exit_code in _STOPPED:
            return False
        marker = self.folder / FAILED / cell.id
        marker.parent.mkdir(exist_ok=True)
        marker.write_text(f"{one.exit_code}\n", encoding="utf-8")
        if one.exit_code == ConfigError.exit_code:  # the others would be refused alike
            raise ConfigError(f"{cell.id}: {last_line(one.job.log).removeprefix('error: ')}")
        return True

    def _said(self, cell: Cell, one: Ended) -> str:
        status = status_of(cell, self.folder)
        loss = "" if status.loss is None else f", {status.loss:.4f}"
        return f"{status.state.value}{loss}, {duration(one.seconds)}{': ' + status.error if status.error else ''}"

    def loss(self, cell: Cell) -> float:
        """Of a finished cell; infinite of one that diverged."""
        loss = loss_of(status_of(cell, self.folder))
        return math.inf if loss is None else loss
