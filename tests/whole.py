"""Whole runs of a second: the one that most tests of them look at, and others like it."""

from pathlib import Path
from typing import Any

from llmtrain.data.prepare import prepare
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from llmtrain.run import Run
from llmtrain.setup import Setup, set_up
from runs import tiny as tiny_run

STEPS, ROWS, SEQ_LEN = 12, 4, 512  # of a tiny run
SCORE = "validation/clm_nats_per_token"


def tiny(home: Path, **changes: Any) -> Run:
    """Samples take as long as the training does, so only the run that most tests look at makes one."""
    return tiny_run(home, **({"eval__samples": 0} | changes))


def finished(home: Path) -> RunRecord:
    """The record of the run that most tests look at."""
    run = tiny(home, name="done", eval__every=5, eval__samples=1)
    record = train(run, overrides=["name=done", "eval.every=5"])
    assert record is not None
    return record


def ready(run: Run) -> Setup:
    return set_up(run, prepare(run.data, run.tokenizer))
