"""Weights & Biases: offline unless there is a login, and never a reason for a run to wait or to fail."""

import logging
import os
import secrets
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.config import config
from llmtrain.redaction import redact

log = logging.getLogger(__name__)

# how long a server may keep a run waiting: for any answer at all, then for an answer about the run, and at the end
ANSWER_SECONDS, START_SECONDS, FINISH_SECONDS = 2, 6, 10


@config
class WandB(Logger):
    project: str = "llmtrain"
    entity: str | None = None
    group: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"  # auto: online where there is a login

    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        return [WandBSink(self, folder, run_config)]


class WandBSink(Sink):
    def __init__(self, cfg: WandB, folder: Path, run_config: dict[str, Any]):
        wandb = _wandb()
        self._failed = False
        options: dict[str, Any] = {
            "project": cfg.project, "entity": cfg.entity, "group": cfg.group, "name": folder.name,
            "resume": "allow", "dir": str(folder), "config": run_config,
        }  # fmt: skip
        settings = wandb.Settings(
            init_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=False,
            silent=True,
            console="off",
            x_disable_meta=any(
                word != redact(word) for word in sys.argv
            ),  # it would send the words of the command
        )
        run_id = _id(folder)
        reason = None if cfg.mode == "offline" else _unreachable()
        if cfg.mode != "offline" and reason is None:
            try:
                self._run = wandb.init(mode="online", settings=settings, id=run_id, **options)
                return
            except wandb.Error as error:
                reason = " ".join(str(error).split())
                run_id += "-offline"  # wandb holds on to the id that it could not open
        try:
            self._run = wandb.init(mode="offline", settings=settings, id=run_id, **options)
        except Exception as error:  # a disk without room for its files, a service process that does not start
            self._leave_out(error)
            return
        if reason and (reason != NO_LOGIN or cfg.mode == "online"):
            log.warning("wandb cannot be reached: %s", reason)
        log.info("wandb logs offline; later: wandb sync %s/wandb/offline-run-*", folder)

    def log(self, row: dict[str, Any]) -> None:
        self._kept_apart(lambda: self._run.log(row, step=row["step"]))

    def report(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        summary: Mapping[str, Any],
        figures: Mapping[str, Path],
    ) -> None:
        """What many runs come to: a table of them, numbers and pictures."""
        wandb = _wandb()

        def sent() -> None:
            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({"runs": table} | {name: wandb.Image(str(path)) for name, path in figures.items()})
            self._run.summary.update(dict(summary))

        self._kept_apart(sent)

    def close(self) -> None:
        self._kept_apart(lambda: self._run.finish())

    def _kept_apart(self, call: Callable[[], Any]) -> None:
        """A service that fails is no reason for a run to fail: said once, then left out."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever wandb raises
            self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        self._failed = True
        log.warning("wandb failed (%s) and is left out from here on; metrics.jsonl has everything", error)


NO_LOGIN = "there is no login: wandb login"


def _unreachable() -> str | None:
    """Why wandb cannot log online; None where it can.

    Asked before ``wandb.init``, which waits up to 100 s for a server that is not there.
    """
    if not logged_in():
        return NO_LOGIN
    url = _wandb().setup().settings.base_url
    answers: list[str | None] = []
    # in a thread: a timeout of a socket does not bound the search for its address
    asking = threading.Thread(target=lambda: answers.append(_no_answer(url)), daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS + 1)
    return answers[0] if answers else f"{url} does not answer"


def logged_in() -> bool:
    """Whether this user has a key, in the environment or where ``wandb login`` puts it; nobody is asked."""
    return bool(_wandb().login(prompt=False, verify=False))


def _wandb() -> Any:
    """The library, told before it is imported to be quiet, and to send no telemetry of its own.

    Where there is no network, the latter keeps a process for 20 s after its end.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _no_answer(url: str) -> str | None:
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # whatever it says of the page, there is a server
    except (OSError, ValueError) as error:
        return f"{url}: {getattr(error, 'reason', error)}"
    return None


def _id(folder: Path) -> str:
    """The same for every start of one run, and no other's."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(f"{folder.name}-{secrets.token_hex(4)}", encoding="utf-8")
    return path.read_text(encoding="utf-8")
