"""The held-out score of a task, with its standard error, in its own unit and in bits per byte."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from llmtrain import heartbeat, philox
from llmtrain.config import to_plain
from llmtrain.data.collate import collate, to_device
from llmtrain.data.rows import Rows
from llmtrain.objectives.base import Objective, Task
from llmtrain.ranks import gather_objects, n_shares, share
from llmtrain.record import Score
from llmtrain.sharding import root_gathered
from llmtrain.types import Vocab

VALIDATION_SEED = 20_011  # the same corruption in every run, whatever its own seed


class HeldOut(NamedTuple):
    """Rows that no run trains on, what is scored on them, and what they are, for the hash of a score."""

    objective: Objective
    rows: Rows
    fingerprint: str
    tokenizer_hash: str
    isolate_documents: bool


class Scored(NamedTuple):
    score: Score
    n_bytes: int | None  # of the text that was scored; none where there is no likelihood

    @property
    def bits_per_byte(self) -> float | None:
        return self.score.value * self.score.n / (math.log(2) * self.n_bytes) if self.n_bytes else None


def eval_hash(of: HeldOut, seq_len: int, n_rows: int) -> str:
    """What must agree before two scores are compared."""
    what = [
        to_plain(of.objective, identity=True),
        seq_len,
        of.fingerprint,
        of.tokenizer_hash,
        of.isolate_documents,
        n_rows,
    ]
    text = json.dumps(what, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@torch.no_grad()
def score(
    task: Task,
    held_out: HeldOut,
    vocab: Vocab,
    *,
    seq_len: int,
    batch_rows: int,
    context: Callable[[], Any],
    max_rows: int | None = None,
) -> Scored:
    """Sum of nats / sum of counts over held-out rows, shared out over the ranks; each row scored once.

    ``context`` makes the context manager of the run's precision. With ``max_rows`` so many rows, spread evenly, are
    scored, unless they are scored against one another. The standard error treats rows as the independent units (a
    ratio estimator), since tokens of one row are not.
    """
    objective, rows = held_out.objective, held_out.rows
    n = rows.n_rows if max_rows is None or objective.together else min(max_rows, rows.n_rows)
    own, shares = (0, 1) if objective.together else (share(), n_shares())  # together: each rank scores all
    was_training = task.training
    task.eval()
    every = [range(first, min(first + batch_rows, n)) for first in range(0, n, batch_rows)]
    mine = every[own::shares]
    # ranks that gather a sharded model together need as many batches: one that has fewer goes along, uncounted
    along = every[: -(-len(every) // shares) - len(mine)]
    sums: list[tuple[float, float]] = []
    n_bytes: list[int] = []

    def batches() -> Iterator[Any]:
        for batch in [*mine, *along]:
            heartbeat.beat()
            chosen = [i * rows.n_rows // n for i in batch]
            raw = [rows[i] for i in chosen]
            n_bytes.extend(int(vocab.n_bytes[r.ids[objective.overlap :]].sum()) for r in raw)
            rngs = [philox.generator(VALIDATION_SEED, "example", 0, i) for i in chosen]
            examples = [
                objective.example(r, vocab, seq_len=seq_len, rng=g) for r, g in zip(raw, rngs, strict=True)
            ]
            yield to_device(collate(examples), task.model.embed.weight.device)

    with context(), root_gathered(task):
        for of_rows, counted in objective.held_out(task.model, batches()):
            sums += zip(of_rows.double().tolist(), counted.double().tolist(), strict=True)
    task.train(was_training)
    n_own = sum(map(len, mine))
    counted_here = sums[:n_own], sum(n_bytes[:n_own])
    parts = [counted_here] if objective.together else gather_objects(counted_here)
    nats, counts = np.array([pair for part, _ in parts for pair in part]).reshape(-1, 2).T
    value, total = _ratio(nats, counts), float(counts.sum())
    found = Score(
        name=objective.score_name,
        value=value,
        se=_standard_error(nats, counts, value),
        n=int(total),
        unit=objective.score_unit,
        eval_hash=eval_hash(held_out, seq_len, n),
    )
    return Scored(found, sum(b for _, b in parts) if objective.likelihood else None)


def together(scores: Mapping[str, Scored]) -> Scored:
    """The score over all sets as one, each position counted once: that of a mix."""
    each = list(scores.values())
    if len(each) == 1:
        return each[0]
    n = sum(s.score.n for s in each)
    errors = [s.score.se for s in each]
    known = [e for e in errors if e is not None]
    return Scored(
        Score(
            name=each[0].score.name,
            value=math.fsum(s.score.value * s.score.n for s in each) / n,
            se=math.hypot(*(e * s.score.n for e, s in zip(known, each, strict=True))) / n
            if len(known) == len(each)
            else None,
            n=n,
            unit=each[0].score.unit,
            eval_hash=hashlib.blake2b(
                "".join(s.score.eval_hash for s in each).encode(), digest_size=8
            ).hexdigest(),
        ),
        sum(s.n_bytes or 0 for s in each) or None,
    )


def _ratio(nats: np.ndarray, counts: np.ndarray) -> float:
    return float(math.fsum(nats.tolist()) / counts.sum()) if counts.sum() else math.nan


def _standard_error(nats: np.ndarray, counts: np.ndarray, value: float) -> float | None:
    n = len(nats)
    if n < 2:
        return None
    residual = nats - value * counts
    return float(np.sqrt((residual**2).sum() * n / (n - 1)) / counts.sum())
