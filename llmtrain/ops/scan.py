"""The selective scan of Mamba-2 over packed documents: its recurrence, and a fast path for each kind of machine."""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmtrain.ops import backend, scan_mamba
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.scan_chunks import State, ssd
from llmtrain.ops.scan_tiles import ssd_tiled
from llmtrain.types import NO_DOC

# axes: H heads, P head width, G groups (H / G heads share b and c), N d_state


def scan(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    doc: Int[Tensor, "B T"],
    *,
    chunk: int,
    reverse: bool = False,
) -> Float[Tensor, "B T H P"]:
    """``h = exp(dt a) h + dt b x; y = c h`` along each document (Dao and Gu 2024).

    In at least float32, but for the kernels of mamba_ssm: they sum in float32 what under autocast comes in its dtype.
    ``dt`` is not negative, ``a`` is negative. ``reverse`` runs from the last token to the first. Tokens of ``NO_DOC``,
    at the end or among the others, are neither heard nor answered. ``chunk`` is how many positions are taken at a time,
    and changes nothing but the time that it takes.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    name = backend.choose("scan", x, dtype)
    if name == "mamba":
        x, b, c = (t.to(dtype) for t in (x, b, c))
        dt, a = _wide(dt, a)
    else:
        x, dt, a, b, c = _wide(x, dt, a, b, c)
    with torch.autocast(device, enabled=False):
        return KERNELS[name](x, dt, a, b, c, doc, chunk=chunk, reverse=reverse)


def resume(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    doc: Int[Tensor, "B T"],
    state: State,
    *,
    chunk: int,
) -> tuple[Float[Tensor, "B T H P"], State]:
    """``scan`` of the next tokens from where ``state`` stands, and the state after them."""
    x, dt, a, b, c = _wide(x, dt, a, b, c)
    with torch.autocast(x.device.type, enabled=False):
        if x.shape[1] == 1:
            y, h = recurrence(x, dt, a, b, c, doc, state=state)
        else:
            y, h = ssd(x, dt, a, b, c, doc, chunk=chunk, state=state)
    return y, State(h, doc[:, -1])


def recurrence(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    doc: Int[Tensor, "B T"],
    *,
    reverse: bool = False,
    state: State | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H N P"]]:
    """The definition, a token at a time, and the state after the last."""
    (rows, tokens, heads, width), (groups, n_state) = x.shape, b.shape[2:]
    b, c = (part.repeat_interleave(heads // groups, 2)[..., None] for part in (b, c))  # B T H N 1
    if state is None:
        h, last = x.new_zeros(rows, heads, n_state, width), torch.full_like(doc[:, 0], NO_DOC)
    else:
        h, last = state
    out = []
    for t in reversed(range(tokens)) if reverse else range(tokens):
        goes_on = (doc[:, t] == last)[:, None, None, None]
        real = (doc[:, t] != NO_DOC)[:, None, None, None]
        h = (h * (dt[:, t] * a).exp()[..., None, None]).where(goes_on, 0.0)
        h = (h + b[:, t] * (x[:, t] * dt[:, t, :, None])[:, :, None]).where(real, 0.0)
        out.append((c[:, t] * h).sum(2))
        last = doc[:, t]
    return torch.stack(out[::-1] if reverse else out, 1), h


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = at_least_float32(functools.reduce(torch.promote_types, (t.dtype for t in tensors)))
    return tuple(t.to(dtype) for t in tensors)


def _reference(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, doc: Tensor, *, chunk: int, reverse: bool
) -> Tensor:
    return recurrence(x, dt, a, b, c, doc, reverse=reverse)[0]


def _chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, doc: Tensor, *, chunk: int, reverse: bool
) -> Tensor:
    if not torch.compiler.is_compiling() and backend.device_type(x) == "cpu":
        return ssd_tiled(x, dt, a, b, c, doc, chunk=chunk, reverse=reverse)
    return ssd(x, dt, a, b, c, doc, chunk=chunk, reverse=reverse)[0]


KERNELS = {"reference": _reference, "chunked": _chunked, "mamba": scan_mamba.mamba}
