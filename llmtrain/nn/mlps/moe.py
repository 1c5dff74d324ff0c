"""A mixture of experts: each token goes through a few of many small MLPs, which a router chooses."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from llmtrain.config import config
from llmtrain.nn.base import MLP, Extent, Flops, MLPModule, dense_flops
from llmtrain.nn.mlps.swiglu import SwiGLUModule
from llmtrain.nn.mlps.width import d_ff
from llmtrain.nn.parallel import per_rank, split_first_axis, spread_out, summed
from llmtrain.nn.roles import Role, linear
from llmtrain.ops import dataless
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.moe import Slots, experts
from llmtrain.types import ANY, NO_DOC, Hidden, Routing, Seq, Visibility


@config
class MoE(MLP):
    """SwiGLU experts behind a router (Shazeer et al. 2017), dropless: no token is turned away.

    With ``choice`` "token" each token takes its ``top_k`` experts. The gates are the router's scores, over their sum
    where ``renormalise`` says so: with softmax that is Mixtral's and Granite's softmax over the chosen logits, and
    Qwen3's ``norm_topk_prob``; sigmoid scores are DeepSeek-V3's (2024). Loads are evened out by a loss (``balance``,
    Fedus et al. 2021), or by a bias on the choice that never enters a gate (``bias_rate``, Wang et al. 2024).

    With "expert" each expert takes the tokens of its row that score highest for it, as many as make ``top_k`` experts
    a token on average (Zhou et al. 2022): loads are equal, but the choice hears the whole document.
    """

    n_experts: int = 8
    top_k: int = 2  # experts of a token
    ratio: float = 4 / 3  # d_ff of one expert / d_model; fine-grained experts have a smaller one
    multiple_of: int = 8  # d_ff is rounded up to one
    n_shared: int = 0  # experts that every token goes through, fused to one SwiGLU, without a gate
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True  # the gates of a token sum to ``scale``
    scale: float = 1.0  # of the routed experts' output
    choice: Literal["token", "expert"] = "token"
    balance: float = 0.01  # weight of the load-balancing loss
    z_loss: float = 0.001  # weight of the mean squared log-partition of the router (Zoph et al. 2022)
    bias_rate: float = 0.0  # how far a step moves the bias of the choice; 0: there is none

    def __post_init__(self) -> None:
        for name, least in (("n_experts", 2), ("top_k", 1), ("multiple_of", 1), ("n_shared", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k={self.top_k} is more than n_experts={self.n_experts}: lower it or add experts"
            )
        for name in ("ratio", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("balance", "z_loss", "bias_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.choice == "expert" and (self.renormalise or self.balance or self.bias_rate):
            raise ValueError(
                f"choice=expert makes loads equal and its gates are the scores themselves, but renormalise="
                f"{self.renormalise}, balance={self.balance}, bias_rate={self.bias_rate}: set renormalise=false, "
                "balance=0 and bias_rate=0"
            )
        if self.top_k == 1 and self.renormalise:
            raise ValueError(
                "top_k=1 with renormalise=true makes every gate 1, so that the router learns nothing from the loss: "
                "set renormalise=false, or a higher top_k"
            )

    @property
    def supports(self) -> frozenset[Visibility]:
        """Experts that choose compare a token with later ones: under another visibility the choice leaks."""
        return ANY if self.choice == "token" else frozenset({Visibility.BIDIRECTIONAL})

    @property
    def splits_over_ranks(self) -> bool:
        return True

    @property
    def one_document(self) -> bool:
        return self.choice == "expert"

    def build(self, d_model: int, visibility: Visibility) -> "MoEModule":
        return MoEModule(self, d_model)


class MoEModule(MLPModule):
    bias: Float[Tensor, " E"]  # of the choice, where bias_rate is not 0; see nn/routing.py

    def __init__(self, cfg: MoE, d_model: int):
        super().__init__()
        self.cfg, self.d_ff = cfg, d_ff(d_model, cfg.ratio, cfg.multiple_of)
        self.mesh: DeviceMesh | None = None  # whose ranks share the experts out
        self.router = linear(d_model, cfg.n_experts)
        self.gate_up = nn.Parameter(torch.empty(cfg.n_experts, 2 * self.d_ff, d_model))
        self.down = nn.Parameter(torch.empty(cfg.n_experts, d_model, self.d_ff))
        self.roles = {
            "gate_up": Role("matrix", (self.d_ff, self.d_ff)),
            "down": Role("matrix", residual=True),
        }
        self.shared = SwiGLUModule(d_model, cfg.n_shared * self.d_ff) if cfg.n_shared else None
        if cfg.bias_rate:
            self.register_buffer("bias", torch.zeros(cfg.n_experts))

    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Hidden:
        """Padding is not routed: it counts nothing, and its output is 0."""
        real = seq.doc != NO_DOC
        logits = self.logits(x)
        scores = logits.softmax(-1) if self.cfg.scores == "softmax" else logits.sigmoid()
        slots, counts = (self._by_token if self.cfg.choice == "token" else self._by_expert)(scores, real)
        y = self._experts(x.flatten(0, 1), slots).view(x.shape)
        if self.shared is not None:
            y = y + self.shared(x, seq).h.masked_fill(~real[..., None], 0.0)
        return Hidden(y, (self._routing(logits, scores, real, counts),))

    def split_over(self, mesh: DeviceMesh) -> None:
        """Experts by rank: the router is everyone's, and each rank works on the slots of its own experts."""
        per_rank(self.cfg.n_experts, mesh, "experts")
        for name in ("gate_up", "down"):
            split_first_axis(self, name, mesh)
        if self.shared is not None:
            self.shared.split_over(mesh)
        self.mesh = mesh

    def flops(self, extent: Extent) -> Flops:
        n = extent.tokens
        slots = n * self.cfg.top_k if self.cfg.choice == "token" else self.cfg.n_experts * self._capacity(n)
        routed = 2 * slots * (self.gate_up[0].numel() + self.down[0].numel())
        shared = Flops() if self.shared is None else self.shared.flops(extent)
        return dense_flops(n, self.router).plus(Flops(routed, routed), shared)

    def active_fraction(self) -> dict[str, float]:
        share = self.cfg.top_k / self.cfg.n_experts
        return {"gate_up": share, "down": share}

    def _capacity(self, tokens: int) -> int:
        """How many tokens of a document an expert takes, where experts choose."""
        return math.ceil(tokens * self.cfg.top_k / self.cfg.n_experts)

    def _experts(self, x: Float[Tensor, "N D"], slots: Slots) -> Float[Tensor, "N D"]:
        gate_up: Tensor = self.gate_up
        down: Tensor = self.down
        if self.mesh is not None:
            assert isinstance(gate_up, DTensor) and isinstance(down, DTensor), "split, but not shared out"
            gate_up, down = gate_up.to_local(), down.to_local()
            n = len(gate_up)
            expert = slots.expert - n * self.mesh.get_local_rank()
            own = dataless.found((expert >= 0) & (expert < n), share=n / self.cfg.n_experts)
            gate = spread_out(slots.gate, self.mesh)
            slots = Slots(slots.token[own], expert[own], gate[own])
        return summed(experts(spread_out(x, self.mesh), gate_up, down, slots), self.mesh)

    def logits(self, x: Tensor) -> Float[Tensor, "B T E"]:
        """Of the router, in at least float32."""
        wide = at_least_float32(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.router.weight.to(wide))

    def _by_token(
        self, scores: Float[Tensor, "B T E"], real: Bool[Tensor, "B T"]
    ) -> tuple[Slots, Float[Tensor, " E"]]:
        preference = scores.detach() + self.bias if self.cfg.bias_rate else scores.detach()
        expert = preference.topk(self.cfg.top_k, -1).indices
        gate = scores.gather(-1, expert)
        if self.cfg.renormalise:  # sigmoids may all be 0
            gate = gate / gate.sum(-1, keepdim=True).clamp_min(torch.finfo(gate.dtype).tiny)
        sent = real[..., None].expand_as(expert)
        token = torch.arange(real.numel(), device=real.device).repeat_interleave(self.cfg.top_k)
        return self._slots(token, expert, gate, sent)

    def _by_expert(
        self, scores: Float[Tensor, "B T E"], real: Bool[Tensor, "B T"]
    ) -> tuple[Slots, Float[Tensor, " E"]]:
        n_rows, n_tokens = real.shape
        wish = scores.detach().masked_fill(~real[..., None], -math.inf).mT  # B E T
        token = wish.topk(self._capacity(n_tokens), -1).indices  # B E C
        capacity = -(-real.sum(1) * self.cfg.top_k // self.cfg.n_experts)  # as _capacity, of each row
        sent = torch.arange(token.shape[-1], device=real.device) < capacity[:, None, None]
        gate = scores.mT.gather(-1, token)
        expert = torch.arange(self.cfg.n_experts, device=real.device)[:, None].expand_as(token)
        token = (token + n_tokens * torch.arange(n_rows, device=real.device)[:, None, None]).flatten()
        by_token = token.argsort(stable=True)
        expert, gate, sent = (part.expand_as(expert).flatten()[by_token] for part in (expert, gate, sent))
        return self._slots(token[by_token], expert, gate, sent)

    def _slots(
        self, token: Tensor, expert: Tensor, gate: Tensor, sent: Tensor
    ) -> tuple[Slots, Float[Tensor, " E"]]:
        """Slots and the loads of the experts; one that is not ``sent`` is there only to keep shapes fixed."""
        expert, sent = expert.flatten(), sent.flatten()
        gate = self.cfg.scale * gate.flatten().masked_fill(~sent, 0.0)
        each = torch.arange(self.cfg.n_experts, device=expert.device)
        counts = ((expert[:, None] == each) & sent[:, None]).sum(0).to(gate.dtype)
        return Slots(token, expert, gate), counts

    def _routing(
        self,
        logits: Float[Tensor, "B T E"],
        scores: Float[Tensor, "B T E"],
        real: Bool[Tensor, "B T"],
        counts: Float[Tensor, " E"],
    ) -> Routing:
        prob = scores if self.cfg.scores == "softmax" else F.normalize(scores, p=1.0, dim=-1)
        z = logits.logsumexp(-1).square()
        return Routing(
            counts,
            prob.masked_fill(~real[..., None], 0.0).sum((0, 1)),
            z.masked_fill(~real, 0.0).sum(),
        )
