"""Small whole runs for tests: a text of this Python's library, bytes as tokens, a model of some thousand weights."""

import json
import sysconfig
from pathlib import Path

from llmtrain.compose import run_from
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


def metrics(run: Path) -> list[dict[str, float]]:
    """What the rows of a run say of its numbers; how long they took is left out."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = {"seconds", "tokens_per_second", "mfu"}
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


def weights(run: Path, step: int) -> dict[str, bytes]:
    """The files of a checkpoint that hold tensors."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
