"""Records of runs that were never trained, for what reads records."""

from pathlib import Path
from typing import Any

from llmtrain.record import Count, RunRecord, Score

N = {"total": 100_000, "embedding": 10_000, "head": 10_000, "active": 100_000, "non_embedding": 90_000}
SCORE = {"name": "nats", "value": 3.0, "se": 0.01, "n": 1000, "unit": "nats/token", "eval_hash": "e"}


def record(run: str, **changes: Any) -> RunRecord:
    """A finished run; ``score`` changes parts of the score."""
    score = Score(**(SCORE | changes.pop("score", {})))
    n = Count(**changes.pop("n", N))
    plain: dict[str, Any] = {
        "run": run,
        "series": "clm_dense",
        "objective": "clm",
        "architecture": "dense",
        "size": "d4",
        "seed_init": 0,
        "seed_data": 0,
        "seq_len": 128,
        "batch_rows": 4,
        "steps": 1000,
        "horizon_steps": 1000,
        "warmup_steps": 50,
        "decay_steps": 200,
        "lr": 1e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "precision": "float32",
        "raw_tokens": 10_000_000,
        "positions": 10_000_000,
        "scored": 10_000_000,
        "unique_tokens": 10_000_000,
        "epochs": 1.0,
        "flops_model": 6 * 90_000 * 10_000_000,
        "flops_counter": 6 * 90_000 * 10_000_000,
        "flops_6nd": 6 * 90_000 * 10_000_000,
        "bits_per_byte": None,
        "validation": {},
        "status": "finished",
        "decayed": True,
        "tokens_per_second": 1.0,
        "mfu": 0.1,
        "peak_memory_bytes": 1,
        "wall_seconds": 1.0,
        "device": "cpu",
        "corpus_fingerprint": "c",
        "tokenizer_hash": "t",
        "config_hash": "h",
        "git": None,
        "versions": {"python": "3.11.7"},
    }
    return RunRecord(n=n, score=score, **(plain | changes))


def write(folder: Path, made: RunRecord) -> None:
    (folder / made.run).mkdir(parents=True)
    (folder / made.run / "config.yaml").write_text("")
    made.write(folder / made.run / "record.json")
