"""What is left when a run ends: samples, a figure, and last the record."""

import platform
import resource

import torch

from llmtrain import heartbeat
from llmtrain.accounting import n_fit
from llmtrain.callbacks.figure import loss_figure
from llmtrain.callbacks.metrics import Work
from llmtrain.lit import Pretrain
from llmtrain.markup import fenced, inline
from llmtrain.record import Count, RunRecord
from llmtrain.run_folder import git_commit, versions, write_text
from llmtrain.scoring import Scored, together
from llmtrain.setup import Setup, held_out, rows_of


def conclude(
    setup: Setup,
    module: Pretrain,
    scores: dict[str, Scored],
    work: Work,
    parent: str | None,
    device: torch.device,
) -> RunRecord:
    """Write samples.md, figures/ and record.json into the run's folder; ``device`` is where the run was trained."""
    run = setup.run
    if not run.trainer.sharded:
        setup.task.to(device)  # Lightning leaves a model on the CPU
    with module.optimizer.ema_weights():
        write_text(run.folder / "samples.md", samples(setup))
    main, *others = run.objective.evaluations()
    alike = [main.score_name, *(o.score_name for o in others if o.score_unit == main.score_unit)]
    loss_figure(run.folder, run.folder.name, score_names=alike, unit=main.score_unit)
    record = record_of(setup, module, scores, work, parent, device)
    record.write(run.folder / "record.json")
    return record


def samples(setup: Setup) -> str:
    """Examples of what the model makes of held-out text, as Markdown."""
    run, prepared = setup.run, setup.prepared
    parts = [f"# {inline(run.folder.name)}: samples\n"]
    setup.task.eval()
    for name, shards in held_out(prepared).items() if run.eval.samples else ():
        heartbeat.beat()
        rows = rows_of(shards, run, tail=True)
        n = min(run.eval.samples, rows.n_rows)
        chosen = [rows[i * rows.n_rows // n] for i in range(n)]
        made = run.objective.samples(
            setup.task.model,
            chosen,
            prepared.vocab,
            prepared.tokenizer.decode,
            seq_len=run.seq_len,
            seed=run.data_seed,
        )
        for i, sample in enumerate(made, 1):
            title = f"## {inline(name)} {i}"
            parts.append(f"{title}\n\nGiven:\n\n{fenced(sample.given)}\n\nMade:\n\n{fenced(sample.made)}\n")
    return "\n".join(parts)


def record_of(
    setup: Setup,
    module: Pretrain,
    scores: dict[str, Scored],
    work: Work,
    parent: str | None,
    device: torch.device,
) -> RunRecord:
    run, size, progress = setup.run, setup.size, module.progress
    labels = run.labels
    rows, here = progress.rows, progress.rows - progress.branch_rows
    seconds = max(progress.seconds, 1e-9)
    raw_tokens = round(rows * setup.raw_per_row)
    passes = run.objective.passes(run.seq_len)
    objective = labels.objective or type(run.objective).__name__.lower()
    architecture = labels.architecture or type(run.model.layers[0].mixer).__name__.lower()
    decay = run.schedule.decay_steps(setup.horizon)
    main = together({name: scores[name] for name in setup.main_scores})
    return RunRecord(
        run=run.folder.name,
        cell=labels.cell,
        trunk=labels.trunk,
        parent=parent,
        branch_step=progress.branch_step if parent else None,
        series=labels.series or f"{objective}_{architecture}",
        objective=objective,
        architecture=architecture,
        size=labels.size or "x".join(map(str, run.sized(setup.prepared.vocab.size).shape)),
        n=Count(**size._asdict()),
        seed_init=run.init_seed,
        seed_data=run.data_seed,
        seq_len=run.seq_len,
        batch_rows=run.batch_rows,
        steps=progress.step,
        skipped_steps=module.optimizer.steps - module.optimizer.updates,
        rollbacks=module.optimizer.judge.rollbacks,
        horizon_steps=setup.horizon,
        warmup_steps=run.schedule.warmup_steps(setup.horizon),
        decay_steps=decay,
        lr=run.optim.lr,
        parametrization=run.parametrization.label,
        betas=run.optim.betas,
        weight_decay=run.optim.weight_decay,
        precision=run.trainer.chosen_precision(),
        raw_tokens=raw_tokens,
        positions=round(rows * sum(one.tokens * one.share for one in passes)),
        scored=round(rows * run.objective.scored(run.seq_len)),
        pairs=rows if run.objective.rows == "document" else None,
        unique_tokens=setup.unique_tokens(progress.cursor),
        epochs=raw_tokens / setup.n_tokens,
        flops_model=rows * setup.flops.model,
        flops_counter=rows * setup.flops.counter,
        flops_6nd=6 * n_fit(size) * raw_tokens if sum(one.share for one in passes) == 1 else None,
        score=main.score,
        bits_per_byte=main.bits_per_byte,
        validation={name: found.score for name, found in scores.items()},
        status="finished",
        decayed=decay > 0 and progress.step >= setup.horizon,
        tokens_per_second=here * setup.raw_per_row / seconds,
        mfu=here * setup.flops.counter / seconds / work.peak,
        peak_memory_bytes=peak_memory(device),
        wall_seconds=progress.wall(),
        device=device_name(device),
        corpus_fingerprint=setup.prepared.fingerprint,
        tokenizer_hash=setup.prepared.tokenizer.hash,
        config_hash=run.config_hash,
        git=git_commit(),
        versions=versions(),
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
