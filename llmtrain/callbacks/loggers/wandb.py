"""Weights & Biases: offline unless there is a login, and never a reason for a run to wait or to fail."""

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.config import config

log = logging.getLogger(__name__)

START_SECONDS, FINISH_SECONDS = 8, 10  # how long a server may keep a run waiting


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
        import wandb

        self._failed = False
        mode = cfg.mode if cfg.mode != "auto" else ("online" if _logged_in() else "offline")
        options: dict[str, Any] = {
            "project": cfg.project, "entity": cfg.entity, "group": cfg.group, "name": folder.name,
            "id": _id(folder), "resume": "allow", "dir": str(folder), "config": run_config,
        }  # fmt: skip
        settings = {
            "init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": False,
            "silent": True, "console": "off",
        }  # fmt: skip
        try:
            self._run = wandb.init(mode=mode, settings=wandb.Settings(**settings), **options)
        except wandb.Error as error:
            log.warning(
                "wandb cannot be reached (%s): logging offline; later: wandb sync %s/wandb/offline-run-*",
                error,
                folder,
            )
            self._run = wandb.init(mode="offline", settings=wandb.Settings(**settings), **options)
        if self._run.offline:
            log.info("wandb logs offline; later: wandb sync %s/wandb/offline-run-*", folder)

    def log(self, row: dict[str, Any]) -> None:
        self._kept_apart(lambda: self._run.log(row, step=row["step"]))

    def close(self) -> None:
        self._kept_apart(self._run.finish)

    def _kept_apart(self, call: Callable[[], Any]) -> None:
        """A service that fails is no reason for a run to fail: said once, then left out."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever wandb raises
            self._failed = True
            log.warning("wandb failed (%s) and is left out from here on; metrics.jsonl has everything", error)


def _id(folder: Path) -> str:
    """The same for every start of one run, and no other's."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(f"{folder.name}-{secrets.token_hex(4)}", encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _logged_in() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
