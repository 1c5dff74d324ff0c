"""What becomes of a step that the guard objects to: a line in ``anomalies.jsonl``, and on with it, back, or the end."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import lightning

from llmtrain.callbacks.anomalies import AnomalyLog
from llmtrain.callbacks.checkpoints import Checkpoints
from llmtrain.callbacks.culprit import Culprit, culprit_of, ranks_of
from llmtrain.callbacks.metrics import Metrics
from llmtrain.data.collate import collate, to_device
from llmtrain.data.cursor import Cursor, Range, union
from llmtrain.data.examples import Examples, RankRows
from llmtrain.errors import NumbersError
from llmtrain.lit import Pretrain
from llmtrain.optim.guard import Guard
from llmtrain.ranks import share_of

log = logging.getLogger(__name__)


class Guarding(lightning.Callback):
    """Answers the guard, the same on every rank; ``anomalies`` is there on the first. Listed after ``checkpoints``.

    A rollback ends Lightning's epoch and begins another one, of the rows that are left from the newest checkpoint on.
    """

    def __init__(
        self,
        cfg: Guard,
        examples: Examples,
        rows: RankRows,
        *,
        batch_rows: int,
        checkpoints: Checkpoints,
        metrics: Metrics,
        anomalies: AnomalyLog | None,
    ) -> None:
        self.cfg, self.examples, self.rows, self.batch_rows = cfg, examples, rows, batch_rows
        self.checkpoints, self.metrics, self.anomalies = checkpoints, metrics, anomalies
        self._gone: list[Range] = []  # rows that this start has gone past by rollbacks
        self._again = False  # whether this epoch ends for another to begin

    def on_train_start(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        if self.cfg.rolls_back and module.progress.step == module.progress.branch_step:
            self.checkpoints.save(module)  # so that there always is one to go back to

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        if self._again:
            trainer.should_stop = self._again = False

    def answer(self, module: Pretrain) -> None:
        """To be called before the step is counted. Raises NumbersError where the verdict is to stop."""
        verdict, cursor = module.optimizer.last.verdict, module.progress.cursor
        with module.clock.paused():
            row = self._described(module, cursor)
            said = _sentence(row)
            if verdict.action == "rollback":
                row["back_to"] = self._roll_back(module, cursor)
                said = f"{said}: back to step {row['back_to']}, and on without those rows"
            if self.anomalies is not None:
                self.anomalies.write(row)
                if verdict.action != "stop":  # then the error says it
                    log.warning("%s", said)
        if verdict.action == "stop":
            raise NumbersError(f"{said}; nothing was updated: {self._way_out(module)}")

    def _described(self, module: Pretrain, cursor: Cursor) -> dict[str, Any]:
        last = module.optimizer.last
        verdict = last.verdict
        ranks = ranks_of(last)
        culprit = Culprit(None, None)
        if verdict.kind == "nonfinite":
            context = module.trainer.precision_plugin.forward_context()
            culprit = culprit_of(module, self._batches(module, cursor), context)
        return {
            "step": module.progress.step + 1,
            "kind": verdict.kind,
            "action": verdict.action,
            "loss": last.loss,
            "grad_norm": last.grad_norm,
            "score": verdict.score,
            "ranks": ranks,
            "rows": [list(rows) for rows in union(r for rank in ranks for r in self._rows_of(cursor, rank))],
        } | culprit._asdict()

    def _rows_of(self, cursor: Cursor, rank: int) -> Sequence[Range]:
        return cursor.ranges(self.rows.positions(share_of(rank), self.batch_rows))

    def _batches(self, module: Pretrain, cursor: Cursor) -> Iterator[Any]:
        """What this rank was given in the step, made once more."""
        mine = list(self.rows.positions(self.rows.rank, self.batch_rows))
        for i in range(0, len(mine), self.rows.micro_rows):
            batch = collate([self.examples[cursor.row(n)] for n in mine[i : i + self.rows.micro_rows]])
            yield to_device(module.trainer.precision_plugin.convert_input(batch), module.device)

    def _roll_back(self, module: Pretrain, bad: Cursor) -> int:
        """Put the newest checkpoint's state in the place of this one, with the rows of the bad step gone past."""
        judge, progress, trainer = module.optimizer.judge, module.progress, module.trainer
        rollbacks, wall = judge.rollbacks, progress.wall()
        self.checkpoints.go_back(module)
        judge.rollbacks = rollbacks  # those of the state that was put back are fewer
        progress.wall_before += wall - progress.wall()
        margin = self.cfg.margin * self.batch_rows
        first = max(-margin, progress.rows - bad.rows)  # what was trained on before the checkpoint stays so
        self._gone += bad.ranges(range(first, self.batch_rows + margin))
        self.rows.cursor = progress.cursor = progress.cursor.past(self._gone)
        self.rows.n_rows = (self.metrics.horizon - progress.step) * self.batch_rows
        self.metrics.go_back(module)
        if self.anomalies is not None:
            self.anomalies.go_back(progress.step)
        trainer.should_stop = self._again = True
        trainer.fit_loop.max_epochs += 1
        return progress.step

    def _way_out(self, module: Pretrain) -> str:
        judge, kind = module.optimizer.judge, module.optimizer.last.verdict.kind
        asked = self.cfg.on_nonfinite if kind == "nonfinite" else self.cfg.on_spike
        tried = {
            "skip": f"{judge.skips} steps before it were skipped (guard.max_skips)",
            "rollback": f"{judge.rollbacks} rollbacks did not help (guard.max_rollbacks)",
        }
        if asked in tried:
            return f"{tried[asked]}: lower optim.lr, or look at the data"
        return "lower optim.lr, or go past such steps with guard.on_nonfinite=skip or rollback"


def _sentence(row: dict[str, Any]) -> str:
    ranks, rows = ", ".join(map(str, row["ranks"])), ", ".join(f"{a}-{b - 1}" for a, b in row["rows"])
    found = row["module"] or (row["parameter"] and f"the gradient of {row['parameter']}")
    where = f", first in {found}" if found else ""
    score = "" if row["score"] is None else f" (score {row['score']:.1f})"
    return (
        f"step {row['step']}: loss {row['loss']:g}{score}, gradient norm {row['grad_norm']:g} "
        f"on rank {ranks}, rows {rows}{where}"
    )
