"""``dry_run=true``: from a run's config to what it would take, without a corpus, a GPU or other ranks."""

import os
from typing import Literal, NamedTuple

import torch

from llmtrain.accounting import GPUS, flops, measured_flops, size
from llmtrain.batch import split_batch
from llmtrain.dry_run.report import Report, traffic_of
from llmtrain.dry_run.rows import batch, vocabulary
from llmtrain.dry_run.steps import Plan, take
from llmtrain.errors import ConfigError
from llmtrain.estimate import NAMES
from llmtrain.run import LENGTHS, Run
from llmtrain.trainer import DTYPES, Precision


def dry_run(run: Run) -> Report:
    """What ``run`` would take. Writes nothing. Raises ConfigError for what a real start would refuse."""
    if 1 < run.trainer.tensor < run.trainer.world:
        raise ConfigError(
            f"trainer.tensor={run.trainer.tensor} of {run.trainer.world} ranks: a dry run follows ranks with shares of "
            f"rows or of matrices, not both at once yet; use trainer=fsdp, or trainer.devices={run.trainer.tensor}"
        )
    run.trainer.configure()
    vocab = vocabulary(run)
    try:
        run.objective.check_vocab(vocab, run.seq_len)
        model = run.sized(vocab.size)
        count = size(model, run.objective, vocab.size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    accumulate, micro_rows = split_batch(run)
    work = flops(model, run.objective, run.seq_len, vocab_size=vocab.size, batch_rows=run.batch_rows)
    raw_per_row = run.objective.raw_len(run.seq_len) - run.objective.overlap  # of full rows
    steps = None
    if run.epochs is None:
        steps = run.horizon(
            vocab.size, flops_per_row=work.model, raw_per_row=float(raw_per_row), rows_per_epoch=0
        )
        run.schedule.check(steps)
    target = target_of(run)
    taken = take(
        Plan(
            run=run,
            model=model,
            vocab_size=vocab.size,
            batch=batch(run, vocab, micro_rows),
            accumulate=accumulate,
            device=target.kind,
            precision=target.precision,
        )
    )
    n_layers, d_model = model.shape
    length = next(key for key in LENGTHS if getattr(run, key) is not None)
    return Report(
        experiment=run.labels.experiment,
        n_layers=n_layers,
        d_model=d_model,
        vocab_size=vocab.size,
        n=count,
        device=target.name,
        devices=run.trainer.world,
        strategy=strategy_of(run),
        tensor=run.trainer.tensor,
        precision=target.precision,
        activation_checkpointing=run.trainer.activation_checkpointing,
        seq_len=run.seq_len,
        batch_rows=run.batch_rows,
        micro_rows=micro_rows,
        micro_batches=accumulate,
        memory=taken.peaks,
        device_memory=target.memory,
        traffic=traffic_of(taken.messages, taken.axes),
        step_flops_model=run.batch_rows * work.model,
        step_flops_counter=run.batch_rows * work.counter,
        step_tokens=run.batch_rows * raw_per_row,
        steps=steps,
        length=f"{length}={getattr(run, length):g}",
        mfu=run.estimate.mfu,
        peak_flops=target.peak,
    )


class Target(NamedTuple):
    """The machine that a dry run stands for."""

    name: str
    kind: Literal["cpu", "cuda"]
    precision: Precision
    memory: int  # bytes of a rank
    peak: float  # FLOP/s of all ranks together


def target_of(run: Run) -> Target:
    """Raises ConfigError where accelerator, device and precision do not go together."""
    trainer, estimate = run.trainer, run.estimate
    device = estimate.device
    if device == "auto":
        device = "cpu" if trainer.accelerator == "cpu" else "h100"
    if (device == "cpu") != (trainer.accelerator == "cpu") and trainer.accelerator != "auto":
        raise ConfigError(
            f"estimate.device={device} with trainer.accelerator={trainer.accelerator}: set trainer.accelerator=auto, "
            "or another device"
        )
    if device == "cpu":
        precision = trainer.chosen_precision()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // trainer.devices
        # ranks on one CPU share its cores
        peak = measured_flops(torch.device("cpu"), DTYPES[precision]) * trainer.nodes
        return Target("cpu", "cpu", precision, round(estimate.memory or memory), peak)
    gpu = GPUS[NAMES[device]]
    precision = "bf16" if trainer.precision == "auto" else trainer.precision
    if DTYPES[precision] not in gpu.peaks:
        raise ConfigError(
            f"trainer.precision={precision}: there is no peak of {NAMES[device]} in it to reckon with; use bf16 or "
            "fp32, or trainer.accelerator=cpu"
        )
    peak = gpu.peaks[DTYPES[precision]] * trainer.world
    return Target(NAMES[device], "cuda", precision, round(estimate.memory or gpu.memory), peak)


def strategy_of(run: Run) -> str:
    trainer = run.trainer
    if trainer.strategy != "auto":
        return trainer.strategy
    return "ddp" if trainer.world > 1 else "single"
