"""Signals: the first lets the step end and the state be saved, the second ends the process at once."""

import os
import signal
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist

from llmtrain.callbacks.base import AfterStep
from llmtrain.errors import EXIT_CODES
from llmtrain.lit import Pretrain


class Interrupts(AfterStep):
    """Stops a run between two steps; ``exit_code`` says afterwards whether it did.

    Listed after what saves at the end: from then on, and where training fails, signals are the command's again.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        self._woken = -1

    def on_train_start(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        self._before = {number: signal.signal(number, self._receive) for number in EXIT_CODES}
        self._woken = signal.set_wakeup_fd(-1)  # whoever waits there would not wait for the step to end

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:  # else a rollback begins another
            self._give_back()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self._give_back()

    def after_step(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        code = 0 if self._received is None else EXIT_CODES[self._received]
        if dist.is_initialized():  # ranks hear of a signal at different steps and must end at the same one
            agreed = torch.tensor(code, device=module.device)
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
            code = int(agreed)
        if code:
            self.exit_code = code
            module.stopping = trainer.should_stop = True

    def _give_back(self) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._woken)
            self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(EXIT_CODES[number])
        self._received = number
