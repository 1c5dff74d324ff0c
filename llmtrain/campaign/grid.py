"""The runs that are killed: every objective on every architecture, each of a second, on some of Python's own source."""

import sysconfig
from pathlib import Path

OBJECTIVES = ("clm", "mlm", "denoising", "contrastive")
ARCHITECTURES = ("dense", "moe", "ssm", "hybrid")
CELLS = tuple(f"{objective}_{architecture}" for objective in OBJECTIVES for architecture in ARCHITECTURES)
STEPS, BATCH_ROWS = 12, 4

_SMALL = {  # what makes an experiment a run of a second
    "moe": {"model.layers.0.mixer.head_dim": 8, "model.layers.0.mlp.n_experts": 4},
    "ssm": {"model.layers.0.mixer.head_dim": 8, "model.layers.0.mixer.d_state": 8},
    "dense": {"model.layers.0.mixer.head_dim": 8},
    "hybrid": {
        "model.n_layers": 2, "model.layers.0.mixer.head_dim": 8, "model.layers.0.mixer.d_state": 8,
        "model.layers.1.mixer.head_dim": 8, "model.layers.1.mlp.n_experts": 4,
    },
    "contrastive": {"objective.eval_negatives": 3, "objective.chunk_rows": 1},
}  # fmt: skip


def words(home: Path, cell: str, name: str) -> list[str]:
    """The command line of the small run of ``cell`` in ``home``."""
    objective, architecture = cell.split("_")
    values: dict[str, object] = {
        "experiment": cell, "data": "text", "data.source.paths": f"[{home}/text.txt]", "data.cache": f"{home}/cache",
        "data.section_bytes": 1024, "data.workers": 1, "runs": f"{home}/runs", "name": name,
        "tokenizer": "bytes", "tokenizer.n_sentinels": 32, "size": "d1", "model.d_model": 16, "model.cross.head_dim": 8,
        "seq_len": 48, "batch_rows": BATCH_ROWS, "steps": STEPS, "optim": "muon", "optim.ema": 0.9,
        "schedule": "cosine",
        "checkpoint.every": 3, "eval.every": 4, "eval.rows": 8, "eval.samples": 1,
        "trainer.log_every": 1, "trainer.threads": 1, "trainer.precision": "fp32",
    }  # fmt: skip
    values |= _SMALL.get(architecture, {}) | _SMALL.get(objective, {})
    return [f"{key}={value}" for key, value in values.items()]


def write_text(home: Path, n_bytes: int = 40_000) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((library / name).read_text(encoding="utf-8") for name in ("ast.py", "textwrap.py"))
    (home / "text.txt").write_text(text[:n_bytes], encoding="utf-8")
