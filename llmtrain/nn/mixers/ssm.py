"""The Mamba-2 mixer: a state that every document carries along, and a second one from the end of what all may see."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor, nn

from llmtrain.config import config
from llmtrain.nn.base import Extent, Flops, Mixer, MixerModule, dense_flops
from llmtrain.nn.norm import RMSNorm
from llmtrain.nn.roles import Role, linear
from llmtrain.ops.conv import short_conv
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.norm import rms_norm
from llmtrain.ops.scan import resume, scan
from llmtrain.ops.scan_chunks import State
from llmtrain.types import NO_DOC, Seq, Visibility


@config
class SSM(Mixer):
    """The mixer of Mamba-2 (Dao and Gu 2024), whose gate comes before its norm, as in the models that were published.

    Where a prefix is visible, its tokens hear one another from both sides: a second, reversed branch runs over them
    alone, with a convolution, step sizes and decays of its own, and shares the in-projection and what follows the scan.
    """

    d_state: int = 64
    head_dim: int = 64
    expand: int = 2  # inner width / d_model
    groups: int = 1  # of heads, which share B and C; each is normalised by itself
    conv: int = 4  # tokens that the short convolution hears, its own included
    chunk: int = 64  # positions that are taken at a time: speed alone
    dt_min: float = 1e-3  # initial step sizes, log-uniform between these
    dt_max: float = 0.1
    norm_eps: PositiveFloat = 1e-6

    def __post_init__(self) -> None:
        for name in ("d_state", "head_dim", "expand", "groups", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.conv < 2:
            raise ValueError(f"conv must be at least 2, the token and the one before it, got {self.conv}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"0 < dt_min <= dt_max must hold, got {self.dt_min} and {self.dt_max}")

    def n_heads(self, d_model: int) -> int:
        n, rest = divmod(self.expand * d_model, self.head_dim)
        if rest or n < 1:
            raise ValueError(
                f"d_model={d_model} times expand={self.expand} is no multiple of head_dim={self.head_dim}; "
                "set model.d_model or head_dim"
            )
        if n % self.groups:
            raise ValueError(
                f"d_model={d_model} makes {n} heads of {self.head_dim}, not a multiple of groups={self.groups}"
            )
        return n

    def build(self, d_model: int, visibility: Visibility) -> "SSMModule":
        return SSMModule(self, d_model, visibility)


class Memory(NamedTuple):
    """What the tokens so far left for later ones."""

    tail: Float[Tensor, "B S C"]  # the last inputs of the convolution
    doc: Int[Tensor, "B S"]  # and their documents
    h: Float[Tensor, "B H N P"]  # the state of the last one's document


class Branch(nn.Module):
    """Convolution and scan along one direction of time."""

    def __init__(self, cfg: SSM, n_heads: int, *, reverse: bool):
        super().__init__()
        self.cfg, self.n_heads, self.reverse = cfg, n_heads, reverse
        shared = cfg.groups * cfg.d_state
        self.splits = (n_heads * cfg.head_dim, shared, shared)
        self.conv_weight = nn.Parameter(torch.empty(sum(self.splits), cfg.conv))
        self.conv_bias = nn.Parameter(torch.empty(sum(self.splits)))
        self.dt_bias = nn.Parameter(torch.empty(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads))
        self.roles = {name: Role("vector") for name, _ in self.named_parameters()}

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        """Decay rates in [1, 16], step sizes log-uniform, taps as torch's convolution draws them, no bias."""
        cfg, shape = self.cfg, self.get_parameter(name).shape
        if name == "conv_bias":
            return torch.zeros(shape)
        share = torch.rand(shape, generator=generator)
        if name == "conv_weight":
            return (2 * share - 1) * cfg.conv**-0.5
        if name == "A_log":
            return (1 + 15 * share).log()
        dt = torch.exp(math.log(cfg.dt_min) + share * math.log(cfg.dt_max / cfg.dt_min))
        return dt + torch.log(-torch.expm1(-dt))  # which softplus takes back

    def forward(
        self, xbc: Float[Tensor, "B T C"], dt: Float[Tensor, "B T H"], doc: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B T H P"]]:
        """What the scan makes of the tokens that have a document, and what went into it."""
        x, b, c = self._convolved(xbc, doc)
        y = scan(x, self._step(dt), self._rate(), b, c, doc, chunk=self.cfg.chunk, reverse=self.reverse)
        return y, x

    def init_state(self, rows: int) -> Memory:
        w, cfg = self.conv_weight, self.cfg
        n = cfg.conv - 1
        return Memory(
            w.new_zeros(rows, n, len(w)),
            torch.full((rows, n), NO_DOC, device=w.device),
            w.new_zeros(
                rows, self.n_heads, cfg.d_state, cfg.head_dim, dtype=at_least_float32(self.A_log.dtype)
            ),
        )

    def resume(
        self, xbc: Tensor, dt: Tensor, doc: Tensor, memory: Memory
    ) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B T H P"], Memory]:
        n = self.cfg.conv - 1
        xbc, docs = torch.cat((memory.tail, xbc), 1), torch.cat((memory.doc, doc), 1)
        x, b, c = (part[:, n:] for part in self._convolved(xbc, docs))
        before = State(memory.h, memory.doc[:, -1])
        y, after = resume(x, self._step(dt), self._rate(), b, c, doc, before, chunk=self.cfg.chunk)
        return y, x, Memory(xbc[:, -n:], docs[:, -n:], after.h)

    def flops(self, tokens: int, heard: int) -> Flops:
        """``model``: ``heard`` tokens as a recurrence. ``counter``: the products of all ``tokens``, in whole chunks."""
        inner, n_state = self.splits[0], self.cfg.d_state
        recurrent = 2 * self.conv_weight.numel() + 6 * inner * n_state
        length = min(self.cfg.chunk, tokens)
        pairs = 2 * length**2 * (self.splits[1] + inner)  # c with b, then with x
        states = 2 * 2 * length * inner * n_state  # into the state, and out of it
        return Flops(heard * recurrent, -(-tokens // length) * (pairs + states))

    def _convolved(self, xbc: Tensor, doc: Tensor) -> Sequence[Tensor]:
        xbc = short_conv(xbc, self.conv_weight, self.conv_bias, doc, reverse=self.reverse)
        x, b, c = xbc.split(self.splits, -1)
        return x.unflatten(-1, (self.n_heads, -1)), *(p.unflatten(-1, (self.cfg.groups, -1)) for p in (b, c))

    def _step(self, dt: Tensor) -> Tensor:
        return F.softplus(dt.to(at_least_float32(dt.dtype)) + self.dt_bias)

    def _rate(self) -> Tensor:
        return -self.A_log.to(at_least_float32(self.A_log.dtype)).exp()


class SSMModule(MixerModule):
    """Parameters are named as in ``transformers``' Mamba2Mixer, which has those of ``past`` at its top."""

    def __init__(self, cfg: SSM, d_model: int, visibility: Visibility):
        super().__init__()
        self.cfg = cfg
        self.n_heads = cfg.n_heads(d_model)
        inner, shared = cfg.expand * d_model, cfg.groups * cfg.d_state
        self.past = Branch(cfg, self.n_heads, reverse=False)
        two_ways = visibility is not Visibility.CAUSAL
        self.prefix = Branch(cfg, self.n_heads, reverse=True) if two_ways else None
        dts = (self.n_heads,) * (2 if two_ways else 1)
        self.splits = (inner, inner + 2 * shared, *dts)  # z; x, B and C; dt
        # B and C multiply x: were they to begin smaller in a wider model, so would all that the scan puts out
        self.in_proj = linear(
            d_model, sum(self.splits), splits=(inner, inner, shared, shared, *dts), features=True
        )
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.norm = RMSNorm(inner, eps=cfg.norm_eps)
        self.out = linear(inner, d_model, residual=True)

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Float[Tensor, "B T D"]:
        z, xbc, *dts = self.in_proj(x).split(self.splits, -1)
        y, x = self.past(xbc, dts[0], seq.doc)
        if self.prefix is not None:
            y = y + self._of_prefix(xbc, dts[1], seq)
        return self._gated(y, x, z, seq)

    def init_state(self, rows: int) -> Memory:
        return self.past.init_state(rows)

    def step(
        self, x: Float[Tensor, "B T D"], seq: Seq, state: Memory
    ) -> tuple[Float[Tensor, "B T D"], Memory]:
        z, xbc, *dts = self.in_proj(x).split(self.splits, -1)
        y, x, state = self.past.resume(xbc, dts[0], seq.doc, state)
        if self.prefix is not None and seq.prefix.any():
            y = y + self._of_prefix(xbc, dts[1], seq)  # a prefix comes whole, so nothing of it lies ahead
        return self._gated(y, x, z, seq), state

    def flops(self, extent: Extent) -> Flops:
        out = dense_flops(extent.tokens, self.in_proj, self.out).plus(
            self.past.flops(extent.tokens, extent.tokens)
        )
        if self.prefix is None:
            return out
        whole = extent.visibility is Visibility.BIDIRECTIONAL
        return out.plus(self.prefix.flops(extent.tokens, extent.tokens if whole else extent.prefix))

    def _of_prefix(self, xbc: Tensor, dt: Tensor, seq: Seq) -> Tensor:
        """To the reversed branch what is outside the prefix is padding: never convolved, and no part of a state."""
        assert self.prefix is not None
        y, _ = self.prefix(xbc, dt, seq.doc.where(seq.prefix, NO_DOC))
        return y

    def _gated(self, y: Tensor, x: Tensor, z: Tensor, seq: Seq) -> Tensor:
        """The skip, the gate, a norm for each group, and the projection; padding has a skip too, which it drops."""
        h = torch.addcmul(y, x, self.D[:, None]).flatten(2) * F.silu(z.to(y.dtype))
        parts = zip(h.chunk(self.cfg.groups, -1), self.norm.weight.chunk(self.cfg.groups), strict=True)
        normed = [rms_norm(part, weight, self.cfg.norm_eps) for part, weight in parts]
        y = self.out(normed[0] if len(normed) == 1 else torch.cat(normed, -1))
        return y.masked_fill((seq.doc == NO_DOC)[..., None], 0.0)
