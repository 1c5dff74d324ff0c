"""Cells as jobs of a SLURM cluster: those of a sweep that was killed go on, and its next start finds them."""

import contextlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from llmtrain.config import config
from llmtrain.errors import EXIT_CODES, ConfigError, Retry
from llmtrain.sweep.pool import TRAIN, Job, Launch, Watched

LEFT = 60.0  # seconds for a job to be gone once it is cancelled: SLURM itself waits 30 before it kills


@config
class Slurm(Launch):
    """Jobs of a cluster whose nodes see the folders of runs and of data under the same names."""

    workers: PositiveInt = 16  # jobs at a time, waiting or running
    minutes: PositiveInt = 240  # that a job may take; what it does not finish goes on in another
    again: NonNegativeInt = 8  # further jobs of a cell whose time was over, at most
    gpus: NonNegativeInt = 0  # of each
    memory: PositiveFloat | None = None  # GB of each; none: the cluster's default
    setup: tuple[str, ...] = ()  # shell commands before each, as in module load
    sbatch: dict[str, str | int] = field(default_factory=dict)  # further options, as in partition: gpu
    cluster: Literal["slurm", "local"] = "slurm"  # local: submitit's processes on this machine, for trials

    def pool(self, folder: Path) -> "SlurmPool":
        try:
            import submitit  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError(
                "sweep.launch=slurm needs submitit, which is not installed: pip install 'llmtrain[slurm]', or take "
                "sweep.launch=local"
            ) from None
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise ConfigError(
                "sweep.launch=slurm: there is no sbatch or srun here; start the sweep where jobs are submitted from, "
                "or take sweep.launch=local"
            )
        return SlurmPool(self, folder / "slurm")


class SlurmPool(Watched[Any]):
    """Submitted jobs, whose ids lie in ``folder`` as CELL.job beside submitit's own files."""

    poll = 1.0

    def __init__(self, cfg: Slurm, folder: Path):
        import submitit

        super().__init__()
        self.cfg, self.folder, self.workers = cfg, folder, cfg.workers
        self._executor = submitit.AutoExecutor(folder, cluster=cfg.cluster)
        self._executor.update_parameters(
            name="llmtrain",
            timeout_min=cfg.minutes,
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=cfg.threads,
            gpus_per_node=cfg.gpus or None,
            mem_gb=cfg.memory,
            slurm_setup=list(cfg.setup) or None,
            slurm_additional_parameters=dict(cfg.sbatch) or None,
        )
        self._jobs: dict[str, int] = {}  # by cell: how many this start has submitted
        self._found: set[str] = set()  # ids of jobs of an earlier start
        self._told: set[str] = set()  # ids of jobs that were told to end

    def start(self, job: Job) -> Any:
        """The job of an earlier start where that still waits or runs: two would want one folder."""
        if (path := self._path(job)).exists():
            number = path.read_text(encoding="utf-8").strip()
            before = self._executor._executor.job_class(folder=self.folder, job_id=number)
            self._found.add(number)
            if not self._is_over(before):
                return before
        return self._submitted(job)

    def code(self, job: Job, held: Any) -> int | None:
        from submitit.core.utils import UncompletedJobError

        if not self._is_over(held):
            return None
        self._path(job).unlink(missing_ok=True)
        try:
            code: int = held.result()
        except UncompletedJobError:
            if held.job_id in self._told:  # before it could take the signal otherwise
                return EXIT_CODES[signal.SIGTERM]
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"error: job {held.job_id} ended and left no result: see {held.paths.stderr}\n")
            return -signal.SIGKILL
        stopping = held.job_id in self._told
        if code == Retry.exit_code and not stopping and self._jobs.get(job.id, 1) <= self.cfg.again:
            self._running[job] = self._submitted(job), self._running[job][1]
            return None
        return code

    def stop(self, held: Any) -> None:
        self._told.add(held.job_id)
        self._signal(held, signal.SIGTERM)

    def kill(self, held: Any) -> None:
        self._signal(held, signal.SIGKILL)
        limit = time.monotonic() + LEFT
        while not self._is_over(held) and time.monotonic() < limit:
            time.sleep(self.poll)

    def _submitted(self, job: Job) -> Any:
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError

        try:
            held = self._executor.submit(cell, tuple(job.words), str(job.log.resolve()), self.cfg.threads)
        except (UncompletedJobError, FailedSubmissionError, OSError) as error:
            said = " ".join(str(error).split())[-200:]
            raise ConfigError(f"{job.id} could not be submitted: {said}") from None
        self._path(job).write_text(f"{held.job_id}\n", encoding="utf-8")
        self._jobs[job.id] = self._jobs.get(job.id, 0) + 1
        return held

    def _path(self, job: Job) -> Path:
        return self.folder / f"{job.id}.job"

    def _is_over(self, held: Any) -> bool:
        if held.paths.result_pickle.exists():
            return True
        # submitit knows only those processes that it started itself
        if self.cfg.cluster == "local" and held.job_id in self._found:
            return not _is_alive(int(held.job_id))
        return bool(held.done())

    def _signal(self, held: Any, number: signal.Signals) -> None:
        if self.cfg.cluster == "local":
            # its controller passes SIGTERM on, and kills what it started on SIGINT
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(held.job_id), number if number == signal.SIGTERM else signal.SIGINT)
        elif number == signal.SIGTERM:
            subprocess.call(["scancel", "--state=PENDING", held.job_id])
            subprocess.call(["scancel", "--state=RUNNING", "--signal=TERM", held.job_id])
        else:
            held.cancel(check=False)


def cell(words: tuple[str, ...], log: str, threads: int) -> int:
    """train.py in this process, which is a job: so a signal that SLURM sends to all of it reaches the run once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit goes past it
    late = False

    def warned(*_: object) -> None:
        nonlocal late
        late = True
        signal.raise_signal(signal.SIGUSR1)

    signal.signal(signal.SIGUSR2, warned)  # submitit has SLURM send it before the time is over
    with open(log, "ab") as said:
        os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.argv = [str(TRAIN), *words, f"trainer.threads={threads}"]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return Retry.exit_code if late and code in EXIT_CODES.values() else code


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
