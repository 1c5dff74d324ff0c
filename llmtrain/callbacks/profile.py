"""Where the time of some steps goes, operation by operation, as torch's profiler sees it."""

import gzip
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning
from torch.profiler import ProfilerActivity, profile

from llmtrain.callbacks.base import AfterStep
from llmtrain.lit import Pretrain

log = logging.getLogger(__name__)

_WARM_UP = 3  # steps first: the first ones allocate, choose algorithms and compile
_LARGE = 20_000_000  # bytes of a trace that is compressed; viewers read both
_ROWS = 60  # of the table


class Profile(AfterStep):
    """Records ``steps`` steps of this start, once it is warm, into ``folder``, with what happens between them.

    Listed first, so that it ends before what follows the last of them. Starting and writing are left out of the run's
    time; the recorded steps themselves are slower.
    """

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self._first = 0  # steps done before those that are recorded
        self._profiler: profile | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._first = module.progress.step + _WARM_UP

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        # not after the step before, which may be followed by an evaluation
        if module.progress.step == self._first and self._profiler is None:
            with module.clock.paused():
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of each of its own stages
                device = [ProfilerActivity.CUDA] if module.device.type == "cuda" else []
                self._profiler = profile(activities=[ProfilerActivity.CPU, *device], acc_events=True)
                self._profiler.start()

    def after_step(self, trainer: lightning.Trainer, module: Pretrain) -> None:
        if module.progress.step == self._first + self.steps:
            self._write(module)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._profiler is not None:  # the run, or this start of it, was shorter
            self._write(module)
        elif module.progress.step <= self._first:
            log.warning("no step was profiled: this start has only the %d of the warm-up", _WARM_UP)

    def _write(self, module: Pretrain) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None, "it was started"
        steps, table, trace = (
            module.progress.step - self._first,
            self.folder / "table.txt",
            self.folder / "trace.json",
        )
        with module.clock.paused():
            profiler.stop()
            self.folder.mkdir(exist_ok=True)
            by = "self_cpu_time_total" if module.device.type == "cpu" else "self_device_time_total"
            rows = profiler.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=80)
            table.write_text(f"{steps} steps\n{rows}\n", encoding="utf-8")
            profiler.export_chrome_trace(str(trace))
            if trace.stat().st_size > _LARGE:
                trace = _packed(trace)
        log.info("profiled %d steps: %s, %s", steps, table, trace)


def _packed(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    with path.open("rb") as plain, gzip.open(packed, "wb", compresslevel=6) as file:
        shutil.copyfileobj(plain, file)
    path.unlink()
    return packed
