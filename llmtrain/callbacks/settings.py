"""When a run saves and when it scores: apart from the callbacks, so that reading a config imports no Lightning."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from llmtrain.config import config


@config
class Checkpointing:
    every: PositiveInt | None = None  # steps; none: at the end alone, and when the run is interrupted
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None  # steps whose checkpoints are never deleted
    on_disk_full: Literal["stop", "continue", "wait"] = "stop"  # or read-only, or gone
    wait_seconds: NonNegativeFloat = 600.0  # how long "wait" tries again, before it stops


@config
class Evaluating:
    every: PositiveInt | None = None  # steps; none: at the end alone
    rows: PositiveInt | None = None  # so many held-out rows, spread evenly, while training; all at the end
    batch_rows: PositiveInt | None = None  # rows at a time; none: as in training
    samples: NonNegativeInt = 4  # examples written to samples.md at the end
