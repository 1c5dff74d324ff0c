"""Sizes and FLOPs of a model before there is one: built on the meta device, counted by the modules themselves."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from llmtrain.errors import ConfigError
from llmtrain.nn.base import Extent, Flops, MLPModule
from llmtrain.nn.model import Model, ModelConfig, TokenHead
from llmtrain.objectives.base import Objective
from llmtrain.types import Visibility

MISS = 0.15  # of a number of parameters that was asked for, at most
_WIDEST_STEP = 4096  # a head width, or a multiple of one, is less


class Size(NamedTuple):
    """Parameters; tied weights once, as embedding."""

    total: int
    embedding: int  # the input embedding's table
    head: int  # what the objective adds, where it is not the embedding's table
    active: int  # what one token uses: the total without the experts that it does not go to
    non_embedding: int  # total - embedding


class PooledSize(Size):
    """Of a model whose head pools, and reads no tokens out: then the input table is no head, though it has none."""


def meta_model(cfg: ModelConfig, objective: Objective, vocab_size: int) -> Model:
    """The model without memory or time."""
    with torch.device("meta"):
        return objective.build(cfg, vocab_size)


def size(cfg: ModelConfig, objective: Objective, vocab_size: int) -> Size:
    return size_of(meta_model(cfg, objective, vocab_size))


def size_of(model: Model) -> Size:
    total = sum(p.numel() for p in model.parameters())
    embedding = model.embed.weight.numel()
    head = sum(p.numel() for p in model.head.parameters() if p is not model.embed.weight)
    idle = 0.0
    for module in model.modules():
        if isinstance(module, MLPModule):
            own = dict(module.named_parameters())
            idle += sum(own[name].numel() * (1 - share) for name, share in module.active_fraction().items())
    kind = Size if isinstance(model.head, TokenHead) else PooledSize
    return kind(total, embedding, head, total - round(idle), total - embedding)


def flops(
    cfg: ModelConfig, objective: Objective, seq_len: int, *, vocab_size: int, batch_rows: int = 1
) -> Flops:
    """Forward and backward of one example; the backward pass is twice the forward.

    ``batch_rows`` matters where the rows of a batch are compared with one another.
    """
    return flops_of(meta_model(cfg, objective, vocab_size), objective, seq_len, batch_rows)


def flops_of(model: Model, objective: Objective, seq_len: int, batch_rows: int) -> Flops:
    model_flops = counter = 0.0
    for one in objective.passes(seq_len):
        stack, sees = (
            (model.trunk, objective.sees)
            if one.stack == "trunk"
            else (model.encoder, Visibility.BIDIRECTIONAL)
        )
        assert stack is not None, "the objective passes through an encoder that it did not ask for"
        forward = stack.flops(Extent(one.tokens, sees, one.prefix, one.source))
        if one.scored:
            forward = forward.plus(model.head.flops(one.scored, batch_rows))
        model_flops += one.share * forward.model
        counter += one.share * forward.counter
    return Flops(round(3 * model_flops), round(3 * counter))


def without_table(size: Size) -> int:
    """Parameters without the input embedding's table, the head once: a tied table is the head."""
    without = isinstance(size, PooledSize) or size.head
    return size.non_embedding + (0 if without else size.embedding)


def n_fit(size: Size) -> int:
    """N of scaling laws: ``without_table``, and of experts only those that a token goes to."""
    return without_table(size) - (size.total - size.active)


def solve_width(
    cfg: ModelConfig,
    objective: Objective,
    vocab_size: int,
    *,
    n: float,
    step: int,
    counted: Callable[[Size], int] = without_table,
    miss: float = MISS,
) -> int:
    """The width, a multiple of ``step``, whose parameters, as ``counted`` counts them, are nearest to ``n``.

    Depth stays: it changes the loss at equal size, width hardly does. Widths that the layers cannot have (which are
    no multiple of the head width) are passed over. Raises ConfigError, naming the nearest sizes and widths, where none
    comes within ``miss`` of ``n``, and what the layers say where they have no width at all.
    """

    @functools.cache
    def count(width: int) -> int:
        return counted(size(dataclasses.replace(cfg, d_model=width), objective, vocab_size))

    step = _least_width(count, step)  # the others are its multiples
    low = high = step
    while count(high) < n:
        low, high = high, 2 * high
    while high - low > step:
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if count(middle) < n else (low, middle)
    nearest = min((low, high), key=lambda width: abs(count(width) - n))
    if abs(count(nearest) - n) > miss * n:
        reachable = " and ".join(f"{count(w):,} (d_model={w})" for w in sorted({low, high}))
        raise ConfigError(
            f"size.n={n:,.0f} cannot be met at {cfg.n_layers} layers and a vocabulary of {vocab_size:,}: widths go in "
            f"steps of {step}, nearest: {reachable}; give a size near to that, a smaller head_dim or vocabulary"
        )
    return nearest


def _least_width(count: Callable[[int], int], step: int) -> int:
    """The least multiple of ``step`` that the layers can have; where there is none, what they say to the last."""
    width = step
    while True:
        try:
            count(width)
            return width
        except ValueError:  # as a layer refuses a width
            if width >= _WIDEST_STEP:
                raise
            width += step


class Gpu(NamedTuple):
    memory: int  # bytes, as the driver reports them
    peaks: dict[torch.dtype, float]  # dense, by the vendor's data sheet: FLOP/s without sparsity


def _gpu(mebibytes: int, half: float, single: float) -> Gpu:
    return Gpu(mebibytes << 20, {torch.bfloat16: half, torch.float16: half, torch.float32: single})


GPUS = {  # by a part of the device's name; the first that fits is taken
    "H200": _gpu(143_771, 989e12, 67e12),
    "H100 PCIe": _gpu(81_559, 756e12, 51e12),
    "H100": _gpu(81_559, 989e12, 67e12),
    "B200": _gpu(183_359, 2250e12, 80e12),
    "A100": _gpu(81_920, 312e12, 19.5e12),
    "L40S": _gpu(46_068, 362e12, 91.6e12),
    "4090": _gpu(24_564, 165e12, 82.6e12),
}


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What MFU is measured against, FLOP/s: the data sheet of a known GPU, else a matrix product timed once here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, gpu in GPUS.items():
            if known in name and dtype in gpu.peaks:
                return gpu.peaks[dtype]
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, *, n: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of an n-cubed matrix product: the best of ``repeats``, after one that is not counted.

    Where the machine has no fast product of that type, as a CPU without bfloat16, a smaller one that is
    done in a fraction of a second stands for it.
    """
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
    m = min(n, 256)
    while m < n and 8 * timed_product(a[:m, :m], b[:m, :m]) < 0.25:
        m = min(n, 2 * m)
    _, *seconds = (timed_product(a[:m, :m], b[:m, :m]) for _ in range(repeats + 1))
    return 2 * m**3 / min(seconds)


def timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
