"""The schema of ``record.json``: what one finished run leaves for fits and comparisons; it needs no torch."""

import json
from pathlib import Path
from typing import Any

from llmtrain.config import config


@config
class Count:
    """Parameters, as ``accounting.Size`` counts them."""

    total: int
    embedding: int
    head: int
    active: int
    non_embedding: int


@config
class Score:
    """A held-out score; two scores may be compared iff name, unit and eval_hash agree."""

    name: str
    value: float
    se: float | None  # standard error over held-out rows; none where there is one
    n: int  # positions scored
    unit: str
    eval_hash: str  # of the rows, the objective's evaluation form, the length and the tokenizer


@config
class RunRecord:
    # what ran
    run: str
    cell: str | None = None  # the cell of a sweep's plan
    trunk: str | None = None  # the run that a ladder's branches share
    parent: str | None = None  # RUN@STEP that it started from
    branch_step: int | None = None
    series: str
    objective: str
    architecture: str
    size: str
    n: Count
    seed_init: int
    seed_data: int
    seq_len: int
    batch_rows: int
    steps: int
    skipped_steps: int = 0  # of them, those that moved no weight; their rows are not counted below
    rollbacks: int = 0
    horizon_steps: int  # what the schedule was made for
    warmup_steps: int
    decay_steps: int
    lr: float  # at the base of the parametrisation
    parametrization: str = "standard"
    betas: tuple[float, float]
    weight_decay: float
    precision: str
    # how much
    raw_tokens: int
    positions: int
    scored: int
    pairs: int | None = None  # of a contrastive objective
    unique_tokens: int
    epochs: float
    flops_model: int
    flops_counter: int
    flops_6nd: int | None  # none where 6ND means nothing (two stacks, two towers)
    # how well
    score: Score
    bits_per_byte: float | None
    validation: dict[str, Score]  # by "held-out set/score"
    status: str  # finished | diverged
    decayed: bool  # whether the learning rate had come down to its end
    # at what cost
    tokens_per_second: float  # raw tokens, while training (saving and evaluation apart)
    mfu: float
    peak_memory_bytes: int
    wall_seconds: float
    device: str
    # from what
    corpus_fingerprint: str
    tokenizer_hash: str
    config_hash: str
    git: str | None
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """Written whole or not at all: a run is finished iff this file is there."""
        from pydantic import TypeAdapter

        partial = path.with_suffix(".json.tmp")
        partial.write_bytes(TypeAdapter(type(self)).dump_json(self, indent=2) + b"\n")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**value)
