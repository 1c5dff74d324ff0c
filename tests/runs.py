"""Small whole runs for tests: a text of this Python's library, bytes as tokens, a model of some thousand weights."""

import contextlib
import json
import os
import signal
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain.callbacks.loggers.base import Logger, Sink
from llmtrain.compose import run_from
from llmtrain.config import config
from llmtrain.pretrain import Interrupted, train
from llmtrain.run import Run

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared"  # real corpora, where a checkout has them


def write_text(folder: Path, n_bytes: int = 40_000) -> Path:
    library = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((library / name).read_text(encoding="utf-8") for name in ("ast.py", "textwrap.py"))
    path = folder / "text.txt"
    path.write_text(text[:n_bytes], encoding="utf-8")
    return path


def overrides(folder: Path, **changes: object) -> list[str]:
    """Overrides of a run of some seconds in ``folder``; ``changes`` come last, with __ for the dots of a key."""
    base = {
        "experiment": "clm_dense", "data": "text", "data.source.paths": f"[{folder}/text.txt]",
        "data.cache": f"{folder}/cache", "data.workers": 1, "runs": f"{folder}/runs",
        "tokenizer": "bytes", "tokenizer.n_sentinels": 0, "size": "d1", "model.d_model": 16,
        "model.layers.0.mixer.head_dim": 8, "seq_len": 512, "batch_rows": 4, "steps": 12,
        "optim": "adamw", "schedule": "cosine", "checkpoint.every": 1000, "eval.every": "null",
        "trainer.log_every": 1, "trainer.threads": 1, "trainer.precision": "fp32", "eval.samples": 1,
    }  # fmt: skip
    base |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in base.items()]


def tiny(folder: Path, **changes: object) -> Run:
    return run_from(overrides(folder, **changes))


@contextlib.contextmanager
def without_figures() -> Iterator[None]:
    """Runs that draw nothing, here and in processes forked from here: half of the time of a tiny one is its figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmtrain.outcome.loss_figure", lambda *args, **named: None)
        yield


def metrics(run: Path) -> list[dict[str, float]]:
    """What the rows of a run say of its numbers; how long they took is left out."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = {"seconds", "tokens_per_second", "mfu"}
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


def weights(run: Path, step: int) -> dict[str, bytes]:
    """The files of a checkpoint that hold tensors."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@config
class StopsAt(Logger):
    """Ends its own process's run as a scheduler would: by a signal, after a step."""

    step: int
    signal: int = signal.SIGTERM

    def open(self, folder: Path, run_config: dict[str, Any], *, step: int) -> list[Sink]:
        return [_StopsAt(self)]


class _StopsAt(Sink):
    def __init__(self, cfg: StopsAt):
        self.cfg = cfg

    def log(self, row: dict[str, Any]) -> None:
        if row["step"] == self.cfg.step and "loss" in row:
            os.kill(os.getpid(), self.cfg.signal)


def stopped(run: Run, step: int, number: int = signal.SIGTERM) -> int:
    """Train until ``step``; the exit code."""
    changed = {f: getattr(run, f) for f in run.__dataclass_fields__} | {
        "logger": StopsAt(step=step, signal=number)
    }
    with pytest.raises(Interrupted, match=f"stopped at step {step} of ") as stop:
        train(Run(**changed))
    return stop.value.exit_code


# of the two-minute experiments, one a family and an objective, what makes them runs of a second
PAIRS = [
    f"{o}_{a}" for o in ("clm", "mlm", "denoising", "contrastive") for a in ("dense", "moe", "ssm", "hybrid")
]
_SMALL: dict[str, dict[str, Any]] = {
    "moe": {"model__layers__0__mlp__n_experts": 4},
    "ssm": {"model__layers__0__mixer__d_state": 8},
    "hybrid": {
        "model__n_layers": 2, "model__layers__0__mixer__d_state": 8, "model__layers__1__mixer__head_dim": 8,
        "model__layers__1__mlp__n_experts": 4,
    },
    "contrastive": {"objective__eval_negatives": 3, "objective__chunk_rows": 1},
}  # fmt: skip


def pair(experiment: str) -> dict[str, Any]:
    """Changes of ``overrides`` that make a small run of an experiment OBJECTIVE_ARCHITECTURE."""
    common = {
        "experiment": experiment, "seq_len": 48, "steps": 6, "tokenizer__n_sentinels": 32, "model__cross__head_dim": 8,
        "data__section_bytes": 1024, "eval__rows": 16, "optim": "muon",
    }  # fmt: skip
    objective, architecture = experiment.split("_")
    return common | _SMALL.get(objective, {}) | _SMALL.get(architecture, {})
