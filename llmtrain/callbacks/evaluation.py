"""Scores on held-out rows while a run goes on."""

from collections.abc import Callable

import lightning
from pydantic import PositiveInt

from llmtrain.callbacks.base import AfterStep
from llmtrain.callbacks.metrics import Metrics
from llmtrain.config import config
from llmtrain.lit import Pretrain
from llmtrain.scoring import Scored


@config
class Evaluating:
    every: PositiveInt | None = None  # steps; none: at the end alone
    rows: PositiveInt | None = None  # the first so many held-out rows while training; all of them at the end
    batch_rows: PositiveInt | None = None  # rows at a time; none: as in training
    samples: int = 4  # examples written to samples.md at the end


Score = Callable[[int | None], dict[str, Scored]]  # by validation set, over so many rows


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
        with module.optimizer.ema_weights():
            self.final = self.score(None)
        self.metrics.write(scores_row(module.progress.step, self.final))


def scores_row(step: int, scores: dict[str, Scored]) -> dict[str, float]:
    row: dict[str, float] = {"step": step}
    for name, (score, bits) in scores.items():
        row[f"{name}/{score.name}"] = score.value
        if bits is not None:
            row[f"{name}/bits_per_byte"] = bits
    return row
