"""Sweeps of models of some thousand weights, and pools that end their cells as a test wants."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmtrain.run_folder import write_text as write
from llmtrain.sweep.load import sweep_from
from llmtrain.sweep.plan import Plan, kept_plan
from llmtrain.sweep.pool import Ended, Job
from llmtrain.sweep.question import answer, planned
from llmtrain.sweep.settings import Sweep
from pools import Forked
from runs import overrides


def words(home: Path, name: str, **own: object) -> list[str]:
    """Of a sweep of tiny runs in ``home``."""
    common = [
        w for w in overrides(home, seq_len=32, batch_rows=2, eval__rows=8, eval__batch_rows=64)
        if not w.startswith(("steps=", "runs=", "size=", "model.d_model=", "trainer.log_every="))
    ]  # fmt: skip
    changes: dict[str, object] = {
        "name": name, "runs": home, "depth": 1, "budgets": "[2e7,6e7,2e8]", "factors": "[0.5,1,2]", "seeds": "[0]",
        "optimum.n": 8e3, "optimum.flops": 2e7, "optimum.exponent": 0.2, "tuning.rates": 1, "limits.least_steps": 1,
        "batch_test": "null", "report": "false", "fit.bootstrap": 50, "held_out.flops": 4e8, "held_out.seeds": "[0]",
    }  # fmt: skip
    return [
        "sweep=isoflop", "sweep.series={tiny: [objective=clm]}",
        *(f"sweep.{key}={value}" for key, value in (changes | own).items()), *common,
    ]  # fmt: skip


def run(home: Path, name: str, **own: Any) -> Forked:
    sweep, pool = sweep_from(words(home, name, **own)), Forked()
    answer(sweep, planned(sweep, startup=1.0), force=True, pool=pool)
    return pool


class Ending:
    """The first cell ends with ``code``, and no other is run."""

    workers = 1

    def __init__(self, code: int) -> None:
        self.code = code

    def run(
        self, jobs: Sequence[Job], on_start: Callable[[Job], None], on_end: Callable[[Ended], None]
    ) -> None:
        for job in jobs[:1]:
            on_end(Ended(job, self.code, 1.0))


def elsewhere(done: Path, home: Path) -> tuple[Sweep, Plan]:
    """The finished sweep and its plan, with ``home`` in the place of its folder."""
    sweep = sweep_from(words(done.parent, "a"))
    plan = kept_plan(sweep)
    assert plan is not None
    return dataclasses.replace(sweep, runs=home), plan


class Diverging:
    """Every cell is stopped by its guard."""

    workers = 1

    def run(
        self, jobs: Sequence[Job], on_start: Callable[[Job], None], on_end: Callable[[Ended], None]
    ) -> None:
        for job in jobs:
            said = dict(word.split("=", 1) for word in job.words)
            folder = Path(said["runs"]) / said["name"]
            folder.mkdir(parents=True)
            write(folder / "anomalies.jsonl", json.dumps({"step": 3, "action": "stop"}) + "\n")
            on_end(Ended(job, 4, 1.0))
