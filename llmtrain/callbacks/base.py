"""What happens after an optimiser step, in the order in which the callbacks are listed."""

from abc import ABC, abstractmethod
from typing import Any

import lightning

from llmtrain.lit import Pretrain


class AfterStep(lightning.Callback, ABC):
    """Called once an optimiser step, not once a batch: accumulation makes several batches a step."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if module.stepped:
            self.after_step(trainer, module)

    @abstractmethod
    def after_step(self, trainer: lightning.Trainer, module: Pretrain) -> None: ...
