"""The typed configuration of one run: all that the code ever sees of YAML, with the checks that cross its parts."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from llmtrain.accounting import meta_model, size, solve_width, without_table
from llmtrain.callbacks.loggers.base import Logger
from llmtrain.callbacks.settings import Checkpointing, Evaluating
from llmtrain.config import config, free, is_folder_name, to_plain
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.tokenizers.base import TokenizerConfig
from llmtrain.estimate import Estimate
from llmtrain.nn.model import Model, ModelConfig
from llmtrain.nn.parametrization import Parametrization, Standard
from llmtrain.nn.size import Dial
from llmtrain.objectives.base import Objective
from llmtrain.optim.base import Optim
from llmtrain.optim.guard import Guard
from llmtrain.optim.schedules import Schedule
from llmtrain.trainer import Trainer

LENGTHS = ("steps", "tokens", "epochs", "flops", "tokens_per_param")


@config
class Labels:
    """What figures call the run; the command line fills in the choices that it was given."""

    experiment: str = "run"
    objective: str | None = None  # none: the class's own name, and so on
    architecture: str | None = None
    size: str | None = None
    series: str | None = None  # none: objective_architecture
    cell: str | None = None  # the cell of a sweep's plan
    trunk: str | None = None  # the run that a ladder's branches share


@config
class Run:
    """One run. A field marked ``free`` may differ when the run is continued."""

    objective: Objective
    model: ModelConfig
    size: Dial
    parametrization: Parametrization = Standard()
    data: Corpus | Mix
    tokenizer: TokenizerConfig
    optim: Optim
    schedule: Schedule
    trainer: Trainer = free()
    logger: Logger = free()
    name: str | None = free(
        None
    )  # the folder under runs/; none: from the experiment and a hash of the config
    seed: int = 0
    seed_init: int | None = None  # of the weights; none: seed
    seed_data: int | None = None  # of order and corruption; none: seed
    seq_len: PositiveInt = 256
    batch_rows: PositiveInt = 16  # rows an optimiser step, over all ranks
    micro_rows: PositiveInt | Literal["auto"] | None = free(
        None
    )  # rows a rank takes at a time; none: all of its share; auto: fewer where memory ends
    steps: PositiveInt | None = free(None)  # the length: exactly one of these five
    tokens: PositiveFloat | None = free(None)  # raw tokens
    epochs: PositiveFloat | None = free(None)
    flops: PositiveFloat | None = free(None)  # model FLOPs
    tokens_per_param: PositiveFloat | None = free(
        None
    )  # parameters without the input embedding, the head once
    guard: Guard = free(default_factory=Guard)
    checkpoint: Checkpointing = free(default_factory=Checkpointing)
    eval: Evaluating = free(default_factory=Evaluating)
    resume: Literal["auto", "never"] = free("auto")
    allow_changes: tuple[str, ...] = free(())  # keys that may differ from those of the start before
    force: bool = free(False)  # go on in a folder that another process holds
    init_from: str | None = None  # RUN, RUN@STEP or a Hugging Face folder (its weights alone)
    init_state: Literal["full", "weights"] = "full"  # full: weights, optimiser and cursor
    dry_run: bool = free(False)  # say what the run would take, and train nothing
    estimate: Estimate = free(default_factory=Estimate)  # of a dry run
    runs: Path = free(Path("runs"))
    labels: Labels = free(default_factory=Labels)

    def __post_init__(self) -> None:
        given = [key for key in LENGTHS if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(f"{key}={getattr(self, key):g}" for key in given) or "none of them"
            raise ValueError(
                f"give the run's length as one of {', '.join(LENGTHS)}: found {found} (unset with KEY=null)"
            )
        one_document = self.objective.rows == "document" or not self.data.isolate_documents
        self.objective.check(self.model, seq_len=self.seq_len, one_document=one_document)
        if self.trainer.tensor > 1:
            for i, layer in enumerate(self.model.layers):
                for part in layer.parts():
                    if not part.splits_over_ranks:
                        raise ValueError(
                            f"trainer.tensor={self.trainer.tensor}, but model.layers.{i} has {type(part).__name__}, "
                            "which has no plan for sharing its matrices out over ranks: set trainer=fsdp, which shards "
                            "any layer"
                        )
        self.objective.check_sentinels(self.tokenizer.n_sentinels, self.seq_len)
        self._check_widths()
        key, name = (
            ("labels.experiment", self.labels.experiment) if self.name is None else ("name", self.name)
        )
        if not is_folder_name(name):
            raise ValueError(f"{key}={name!r} must be the name of one folder under {self.runs}/")

    def _check_widths(self) -> None:
        """Build a layer of each kind, without memory: what cannot have the width says so before text is prepared."""
        width = self.model.d_model or self.size.d_model
        if width is not None:  # else it is solved for, once the vocabulary is known
            layers = dataclasses.replace(self.model, n_layers=len(self.model.layers), d_model=width)
            vocab_size = self.tokenizer.n_reserved + 1
            size(layers, self.objective, vocab_size)
            self.parametrization.scales(layers, lambda cfg: meta_model(cfg, self.objective, vocab_size))

    @property
    def init_seed(self) -> int:
        return self.seed if self.seed_init is None else self.seed_init

    @property
    def data_seed(self) -> int:
        return self.seed if self.seed_data is None else self.seed_data

    @property
    def identity(self) -> dict[str, object]:
        """What makes two starts the same run, as plain data; the length is compared apart."""
        plain: dict[str, object] = to_plain(self, identity=True)
        return plain

    @property
    def config_hash(self) -> str:
        """Of the identity and the length: what a run is named after when the user does not name it."""
        length = {key: getattr(self, key) for key in LENGTHS}
        text = json.dumps([self.identity, length], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def folder(self) -> Path:
        return self.runs / (self.name or f"{self.labels.experiment}-{self.config_hash[:8]}")

    def sized(self, vocab_size: int) -> ModelConfig:
        """The model with depth and width from the dial, where it does not give its own, as it is parametrised.

        Raises ValueError where a layer cannot have that width.
        """
        n_layers = self.model.n_layers or self.size.n_layers
        model = dataclasses.replace(
            self.model, n_layers=n_layers, d_model=self.model.d_model or self.size.d_model
        )
        if model.d_model is None:
            assert self.size.n is not None, "a dial without width has a number of parameters"
            width = solve_width(model, self.objective, vocab_size, n=self.size.n, step=self.size.step)
            model = dataclasses.replace(model, d_model=width)
        return self.parametrization.applied(model)

    def build(self, vocab_size: int) -> Model:
        """The model that is trained, not yet initialised, which knows how its parameters are scaled.

        Raises ValueError where a layer cannot have its width, or the one that its parametrisation compares it with.
        """
        cfg = self.sized(vocab_size)
        model = self.objective.build(cfg, vocab_size)
        model.scales = self.parametrization.scales(
            cfg, lambda other: meta_model(other, self.objective, vocab_size)
        )
        return model

    def horizon(self, vocab_size: int, *, flops_per_row: int, raw_per_row: float, rows_per_epoch: int) -> int:
        """The run's length in optimiser steps, whatever it was given in."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            rows = self.epochs * rows_per_epoch
        elif self.flops is not None:
            rows = self.flops / flops_per_row
        elif self.tokens is not None:
            rows = self.tokens / raw_per_row
        else:
            assert self.tokens_per_param is not None, "one length is given, as checked when the run was made"
            n = without_table(size(self.sized(vocab_size), self.objective, vocab_size))
            rows = self.tokens_per_param * n / raw_per_row
        return max(1, round(rows / self.batch_rows))
