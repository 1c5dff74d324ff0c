"""One run from its config to its record."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from lightning import Callback

from llmtrain import faults, heartbeat, philox, ranks, run_folder
from llmtrain.accounting import peak_flops
from llmtrain.batch import sizes_to_try, split_batch
from llmtrain.beginning import from_public, laid_out, taken_over
from llmtrain.callbacks.anomalies import AnomalyLog
from llmtrain.callbacks.checkpoints import Checkpoints
from llmtrain.callbacks.display import display, preparing
from llmtrain.callbacks.evaluation import Evaluation
from llmtrain.callbacks.guarding import Guarding
from llmtrain.callbacks.interrupts import Interrupts
from llmtrain.callbacks.loggers.base import Sink
from llmtrain.callbacks.loggers.jsonl import JsonlSink, read
from llmtrain.callbacks.metrics import Metrics, Work
from llmtrain.checkpoint import find
from llmtrain.config import to_plain
from llmtrain.data.cursor import START
from llmtrain.data.examples import RankRows, loader
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.errors import Stopped
from llmtrain.limits import OutOfMemory, check_shared_memory, release, told, told_of_memory
from llmtrain.lit import Pretrain, Progress
from llmtrain.lock import RunLock
from llmtrain.ops import backend
from llmtrain.origin import Origin, origin_of
from llmtrain.outcome import conclude
from llmtrain.record import RunRecord
from llmtrain.redaction import redacted
from llmtrain.run import Run
from llmtrain.scoring import Scored, score
from llmtrain.setup import Setup, set_up
from llmtrain.trained import trained
from llmtrain.trainer import DTYPES, autocast

log = logging.getLogger(__name__)


class Interrupted(Stopped):
    """A signal ended the run between two steps; its state is saved."""


def train(run: Run, *, overrides: Sequence[str] = ()) -> RunRecord | None:
    """Train ``run`` to its end, from where it was if it was interrupted; its record (None on ranks but the first).

    A finished run is not trained again. Raises a UserError for whatever the user can mend.
    """
    started = time.monotonic()
    rank = run.trainer.rank()
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(RunLock(run.folder, force=run.force))
            finished = run_folder.enter(run)
            if finished is not None:
                log.info("%s is finished: nothing to do", run.folder)
                return finished
        elif run_folder.finished(run):
            return None  # else this rank would wait for the first, which has nothing to do
        stack.enter_context(told(run.folder))
        faults.remember_in(run.folder)
        faults.at("start")
        run.trainer.configure()
        micro_rows = split_batch(run)[1]
        with preparing(show=rank == 0) as progress, heartbeat.waiting():
            prepared = prepare(run.data, run.tokenizer, progress=progress)
        stack.enter_context(backend.force(**run.trainer.kernels))
        *larger, least = sizes_to_try(run, micro_rows)
        for rows_at_a_time in larger:
            try:
                return _start(run, prepared, overrides, rank, started, rows_at_a_time)
            except OutOfMemory as error:
                log.warning("micro_rows=%d is too much: %s", rows_at_a_time, error)
            release()  # here, where no error holds on to tensors
        return _start(run, prepared, overrides, rank, started, least)


def _start(
    run: Run, prepared: Prepared, overrides: Sequence[str], rank: int, started: float, micro_rows: int
) -> RunRecord | None:
    """Train from the newest checkpoint, or from what the config begins with, to the end."""
    setup = set_up(run, prepared)
    origin = origin_of(run, identity_of(setup), prepared.files, rank=rank, horizon=setup.horizon)
    if origin is None and not run.trainer.sharded:  # which begins once the model is there: see laid_out
        from_public(setup, setup.task.model)
    if rank == 0:
        announce(setup, origin)
        run_folder.begin(run, list(overrides), prepared.folder, step=origin.step if origin else 0)
    return _fit(setup, origin, rank, started, micro_rows)


def _fit(setup: Setup, origin: Origin | None, rank: int, started: float, micro_rows: int) -> RunRecord | None:
    run = setup.run
    accumulate = run.batch_rows // run.trainer.shares // micro_rows
    parent = origin.parent if origin else run.init_from
    first_step, cursor = (origin.step, origin.cursor) if origin else (0, START)
    work = work_of(setup)
    share = rank // run.trainer.tensor
    torch.manual_seed(philox.draw_seed(run.data_seed, f"torch on rank {share}"))
    with contextlib.ExitStack() as stack:
        stack.callback(ranks.arrange, None)
        metrics = Metrics([], work, every=run.trainer.log_every, horizon=setup.horizon)
        stack.callback(metrics.close)
        if rank == 0:
            metrics.sinks += open_sinks(setup, first_step)
        scores = scorer(setup, micro_rows)
        evaluation = Evaluation(run.eval, scores, metrics)
        values = identity_of(setup) | {"horizon": setup.horizon, "parent": parent}
        checkpoints = Checkpoints(run.checkpoint, run.folder, values=values, holds=run_folder.CONFIG)
        stack.push(checkpoints)
        examples = setup.examples()
        check_shared_memory(examples[0], micro_rows, run.data.loader_workers)
        rows = RankRows(
            cursor=cursor,
            n_rows=(setup.horizon - first_step) * run.batch_rows,
            micro_rows=micro_rows,
            rank=share,
            world=run.trainer.shares,
        )
        guarding = Guarding(
            run.guard,
            examples,
            rows,
            batch_rows=run.batch_rows,
            checkpoints=checkpoints,
            metrics=metrics,
            anomalies=None if rank else AnomalyLog(run.folder, from_step=first_step),
        )
        interrupts = Interrupts()
        trainer = run.trainer.lightning(
            accumulate=accumulate,
            callbacks=[*_profiles(run, rank), metrics, evaluation, checkpoints, guarding, interrupts],
        )
        device = trainer.strategy.root_device  # afterwards Lightning has forgotten it
        module = Pretrain(
            setup.task,
            optimizer=lambda task: run.optim.build(task, run.schedule, setup.horizon, run.guard),
            batch_rows=run.batch_rows,
            progress=Progress(started=started),
            shard=partial(laid_out, setup=setup, fresh=origin is None),
            restore=partial(taken_over, origin=origin),
            anomaly=guarding.answer,
        )
        if run.trainer.compile:
            setup.task.compile()
        with told_of_memory(setup, module, micro_rows, first_step):
            trainer.fit(module, loader(examples, rows, workers=run.data.loader_workers))
        if not evaluation.final and interrupts.exit_code is None:  # all steps were done by an earlier start
            evaluation.conclude(module, logged=read(run.folder / "metrics.jsonl"))
            checkpoints.prune(rank)
        if rank:
            return None
        if interrupts.exit_code is not None:
            checkpoints.finish()
            raise Interrupted(
                f"stopped at step {module.progress.step} of {setup.horizon}, saved in {run.folder}: "
                "the same command continues",
                interrupts.exit_code,
            )
        faults.at("end")
        if run.trainer.sharded:  # no rank has the model; on a CPU it is whole once more, for samples
            checkpoints.finish()
            last = find(run.folder, step=module.progress.step)
            assert last is not None, "a step that is asked for is found, or refused"
            setup = setup._replace(task=trained(run, setup.prepared.vocab.size, last))
        return conclude(setup, module, evaluation.final, work, parent, device)


def _profiles(run: Run, rank: int) -> list[Callback]:
    if run.trainer.profile is None or rank:
        return []
    from llmtrain.callbacks.profile import Profile

    return [Profile(run.folder / "profile", run.trainer.profile)]


def identity_of(setup: Setup) -> dict[str, str]:
    """What a cursor into the rows belongs to, by hash."""
    run = setup.run
    rows = [
        to_plain(run.objective, identity=True),
        run.seq_len,
        run.batch_rows,
        run.data_seed,
        run.data.isolate_documents,
    ]
    return {
        "tokenizer": setup.prepared.tokenizer.hash,
        "corpus": setup.prepared.fingerprint,
        "row layout": hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest(),
    }


def work_of(setup: Setup) -> Work:
    trainer = setup.run.trainer
    device = torch.device("cuda" if trainer.on_gpu else "cpu")
    peak = peak_flops(device, DTYPES[trainer.chosen_precision()])
    # ranks on one CPU share its cores
    return Work(setup.raw_per_row, setup.flops, peak * (trainer.world if trainer.on_gpu else trainer.nodes))


def open_sinks(setup: Setup, step: int) -> list[Sink]:
    folder = setup.run.folder
    patient = setup.run.checkpoint.on_disk_full != "stop"
    sinks: list[Sink] = [JsonlSink(folder / "metrics.jsonl", from_step=step, patient=patient)]
    sinks += setup.run.logger.open(folder, redacted(to_plain(setup.run)), step=step)
    return [*sinks, display(setup.horizon, step)]


def scorer(setup: Setup, micro_rows: int) -> Callable[[int | None], dict[str, Scored]]:
    """A function that makes every held-out score over so many rows (None: all)."""
    run = setup.run

    def scores(max_rows: int | None) -> dict[str, Scored]:
        faults.at("eval")
        return {
            name: score(
                setup.task,
                rows,
                setup.prepared.vocab,
                seq_len=run.seq_len,
                batch_rows=run.eval.batch_rows or micro_rows,
                context=partial(autocast, run.trainer),
                max_rows=max_rows,
            )
            for name, rows in setup.held_out.items()
        }

    return scores


def announce(setup: Setup, origin: Origin | None) -> None:
    """Say once, before the first step, what is about to run and what was chosen for this machine."""
    run, size = setup.run, setup.size
    log.info(
        "%s: %s parameters (%s outside the embedding), %d steps of %d rows x %d tokens, %.3g model FLOPs, %s%s",
        run.folder, f"{size.total:,}", f"{size.non_embedding:,}", setup.horizon, run.batch_rows, run.seq_len,
        setup.horizon * run.batch_rows * setup.flops.model, run.trainer.chosen_precision(),
        ", compiled" if run.trainer.compile else "",
    )  # fmt: skip
    for line in setup.prepared.left_out():
        log.info("%s", line)
    for name, report in setup.prepared.report["held_out"].items():
        if report["also_in_training"]:
            log.warning(
                "held-out set %s: %d of its %d documents are exact copies of training documents; they are scored too",
                name, report["also_in_training"], report["documents"] - report["duplicate_documents"],
            )  # fmt: skip
    if origin is not None and not origin.branches:
        log.info("continuing at step %d", origin.step)
        for change in run_folder.changes_of_machine(run):
            log.warning("bits may differ from those of one start: %s", change)
    elif origin is not None:
        log.info("starting from %s (%s)", origin.parent, "full state" if origin.full else "weights alone")
