"""Scores on held-out rows while a run goes on."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning

from llmtrain.callbacks.base import AfterStep
from llmtrain.callbacks.metrics import Metrics
from llmtrain.callbacks.settings import Evaluating
from llmtrain.lit import Pretrain
from llmtrain.scoring import Scored

Score = Callable[[int | None], dict[str, Scored]]  # by "validation set/score", over so many rows


class Evaluation(AfterStep):
    """Every ``every`` steps, the score of each validation set among the metrics."""

    def __init__(self, cfg: Evaluating, score: Score, metrics: Metrics):
        self.cfg, self.score, self.metrics = cfg, score, metrics
        self.final: dict[str, Scored] = {}

    def after_step(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        step = module.progress.step
        if self.cfg.every is None or step % self.cfg.every or step == self.metrics.horizon:
            return  # the last step's is the final score, over all rows
        with module.clock.paused(), module.optimizer.ema_weights():
            self.metrics.write(scores_row(step, self.score(self.cfg.rows)))

    def on_train_end(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        if module.stopping:
            return
        self.conclude(module)

    def conclude(self, module: Pretrain, *, logged: Sequence[dict[str, Any]] = ()) -> None:
        """Score all rows, and write what came of it unless an earlier start, which did the last step, has logged it."""
        with module.optimizer.ema_weights():
            self.final = self.score(None)
        row = scores_row(module.progress.step, self.final)
        if row not in logged:
            self.metrics.write(row)


def scores_row(step: int, scores: dict[str, Scored]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step}
    for name, found in scores.items():
        row[name] = found.score.value
        if found.bits_per_byte is not None:
            row[f"{name.partition('/')[0]}/bits_per_byte"] = found.bits_per_byte
    return row
