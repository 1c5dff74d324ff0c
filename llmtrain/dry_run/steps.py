"""An optimiser step of a run on tensors without data: the modules, the optimiser and the order of a real step."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import precision as plugins
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmtrain import ranks
from llmtrain.dry_run.live import Live, Parts
from llmtrain.dry_run.messages import Message
from llmtrain.lit import Pretrain, Progress
from llmtrain.nn.model import ModelConfig
from llmtrain.objectives.base import Task
from llmtrain.ops import backend
from llmtrain.optim.schedules import Constant
from llmtrain.run import Run
from llmtrain.sharding import lay_out
from llmtrain.strategy import unsynchronised
from llmtrain.trainer import DTYPES, Precision, Trainer

_GRANULE = {"cpu": 1, "cuda": 512}  # what torch's allocator rounds up to


_AXES = {ranks.DATA: "data", ranks.TENSOR: "tensor"}
PHASES = ("forward", "backward", "optimiser")


class Plan(NamedTuple):
    """What the steps are taken of."""

    run: Run
    model: ModelConfig
    vocab_size: int
    batch: Any  # of one micro batch of one rank, real
    accumulate: int  # micro batches a step
    device: Literal["cpu", "cuda"]  # whose forms of operations are taken
    precision: Precision


class Taken(NamedTuple):
    """What a step took, that of any but the first: there are gradients of the step before."""

    peaks: dict[str, Parts]  # by phase
    messages: list[Message]
    axes: dict[str, str]  # of groups of ranks, by their name


def take(plan: Plan) -> Taken:
    """Build on fake tensors and take a step. Of many micro batches the first and the last are run."""
    run, micro = plan.run, min(plan.accumulate, 2)
    precision = _precision(plan.precision)
    with contextlib.ExitStack() as stack:
        grid = stack.enter_context(fake_ranks(run.trainer))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))  # a grid of ranks has real ones
        stack.enter_context(backend.force(**_kernels(plan)))
        stack.enter_context(backend.standing_for(plan.device))
        with precision.module_init_context():
            module = _module(plan, grid)
        module.configure_optimizers()
        batch = _fake(plan.batch)
        weights = list(module.parameters())
        for p in weights:
            p.grad = torch.empty_like(p)  # those of the step before
        # of DDP, whose own code cannot run without data
        replicated = run.trainer.world > 1 and grid is None
        buckets = [torch.empty_like(p) for p in weights] if replicated else []

        def gradients() -> list[Tensor]:
            return [*buckets, *(p.grad for p in weights if p.grad is not None)]

        live = stack.enter_context(Live(gradients, granule=_GRANULE[plan.device]))
        live.know(parameters=[*weights, *module.buffers()], optimiser=module.optimizer.tensors(), batch=batch)
        sent = [len(live.messages)]
        for i in range(micro):
            _micro_batch(module, batch, i, micro, live, precision)
            sent.append(len(live.messages))
        if replicated:
            dist.all_reduce(torch.cat([bucket.flatten() for bucket in buckets]))
        axes = (
            {}
            if grid is None
            else {str(grid.get_group(name).group_name): axis for name, axis in _AXES.items()}
        )
    first, last = live.messages[sent[0] : sent[-2]], live.messages[sent[-2] :]
    messages = first * (plan.accumulate - 1) + last
    return Taken({phase: live.peaks[phase] for phase in PHASES}, messages, axes)


def _micro_batch(
    module: Pretrain, batch: Any, i: int, of: int, live: Live, precision: plugins.Precision
) -> None:
    """In the order of Lightning's automatic optimisation: gradients of the step before outlive the forward pass."""

    def closure() -> Tensor:
        with live.during("forward"):
            with precision.forward_context():
                loss = module.training_step(batch, i)
            loss = loss / of
        with live.during("backward"):
            if i == 0:
                module.optimizer.zero_grad()
            loss.backward()
        return loss.detach()

    if i < of - 1:
        with unsynchronised(module):
            closure()
    else:
        with live.during("optimiser"):
            module.optimizer_step(0, i, module.optimizer, closure)


def _module(plan: Plan, grid: DeviceMesh | None) -> Pretrain:
    run = plan.run
    model = run.objective.build(plan.model, plan.vocab_size)
    if run.trainer.activation_checkpointing == "block":
        model.recompute_blocks()
    task = Task(model, run.objective)
    if grid is not None:
        lay_out(task, grid)
    return Pretrain(
        task,
        optimizer=lambda task: run.optim.build(task, Constant(), 1000),
        batch_rows=run.batch_rows,
        progress=Progress(),
    )


def _kernels(plan: Plan) -> dict[str, str]:
    """Those of the run; on a CPU, attention to rows of several documents with a mask, as the fullest rows take it."""
    run = plan.run
    kernels = dict(run.trainer.kernels)
    several = run.objective.rows == "packed" and run.data.isolate_documents
    if plan.device == "cpu" and several:
        with backend.force(**kernels):
            chosen = backend.choose("attention", torch.empty(0), DTYPES[run.trainer.chosen_precision()])
        if chosen == "by_document":
            kernels["attention"] = "masked"
    return kernels


def _precision(name: Precision) -> plugins.Precision:
    if name == "bf16":
        return plugins.MixedPrecision("bf16-mixed", "cpu")  # where fake tensors are
    return plugins.DoublePrecision() if name == "fp64" else plugins.Precision()


def _fake(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return torch.empty(tree.shape, dtype=tree.dtype)
    parts = [_fake(part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


@contextlib.contextmanager
def fake_ranks(trainer: Trainer) -> Iterator[DeviceMesh | None]:
    """This process as the first of the run's ranks, whose messages go nowhere; their grid, where they hold shards."""
    if trainer.world == 1 and not trainer.sharded:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=trainer.world, store=FakeStore())
    try:
        grid = None
        if trainer.sharded:
            names = (ranks.DATA, ranks.TENSOR)
            grid = init_device_mesh("cpu", (trainer.shares, trainer.tensor), mesh_dim_names=names)
        ranks.arrange(grid)
        yield grid
    finally:
        ranks.arrange(None)
        dist.destroy_process_group()
