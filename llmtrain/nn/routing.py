"""What is made of the routers' counts: the losses that even out loads, the moves of biases, and a report."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmtrain.nn.mlps.moe import MoEModule
from llmtrain.ranks import n_shares, sum_shares
from llmtrain.types import Routing


def routers(model: nn.Module) -> list[MoEModule]:
    """The layers that route, in the order in which a forward pass meets them: an encoder's, then the trunk's."""
    return [module for module in model.modules() if isinstance(module, MoEModule)]


def by_layer(n_layers: int, routing: Sequence[Routing]) -> list[Routing]:
    """The sum of the passes through each layer; ``routing`` has one entry a layer, pass after pass.

    Passes are towers, chunks of a batch or micro batches. Sums are exact, since nothing in them is a mean.
    """
    assert len(routing) % n_layers == 0, "a pass left some of the layers out"
    return [
        Routing(*(torch.stack(parts).sum(0) for parts in zip(*routing[i::n_layers], strict=True)))
        for i in range(n_layers)
    ]


def n_tokens(routing: Routing) -> Float[Tensor, ""]:
    """How many tokens were routed: the probabilities of each sum to 1."""
    return routing.prob.detach().sum().round()


def over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each over all shares of the batch, without gradient, in one message."""
    flat = torch.cat([t.detach().flatten() for t in tensors])
    sum_shares(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def routing_loss(layers: Sequence[MoEModule], routing: Sequence[Routing]) -> Float[Tensor, ""]:
    """The losses of all routers, from the loads of the global batch.

    Of each layer ``balance`` x E sum_e f_e P_e (Fedus et al. 2021), 1 at uniform loads, where f_e is the share of all
    slots that went to expert e, taken as constant, and P_e the mean of its probability; and ``z_loss`` x the mean of
    the squared log-partition (Zoph et al. 2022). A rank returns its share's part times the number of shares, so
    that the mean over them, which is made of gradients, is that of one process with all rows, even where some
    ranks hold fewer tokens.
    """
    mine = by_layer(len(layers), routing)
    loss = torch.zeros_like(mine[0].z)
    if not any(layer.cfg.balance or layer.cfg.z_loss for layer in layers):
        return loss
    totals = over_ranks([t for r in mine for t in (r.counts, n_tokens(r))])
    for layer, one, counts, n in zip(layers, mine, totals[::2], totals[1::2], strict=True):
        share = counts / counts.sum().clamp_min(1)
        own = layer.cfg.balance * len(counts) * (share * one.prob).sum() + layer.cfg.z_loss * one.z
        loss = loss + n_shares() * own / n.clamp_min(1)
    return loss


@torch.no_grad()
def update_biases(layers: Sequence[MoEModule], counts: Sequence[Float[Tensor, " _"]]) -> None:
    """Make experts with more than the mean load less eligible, the others more (Wang et al. 2024).

    To be called once an optimiser step, with each layer's ``counts`` of all ranks and micro batches. Biases are
    recentred, since only their differences decide.
    """
    for layer, load in zip(layers, counts, strict=True):
        if layer.cfg.bias_rate:
            layer.bias += layer.cfg.bias_rate * (load.mean() - load).sign().to(layer.bias.dtype)
            layer.bias -= layer.bias.mean()


def report(
    counts: Sequence[Float[Tensor, " _"]], z: Sequence[Float[Tensor, ""]], n: Sequence[Float[Tensor, ""]]
) -> dict[str, float]:
    """What is logged of the routers, from each layer's loads, sum of squared log-partitions and number of tokens.

    ``load_max_over_mean`` is that of the worst layer, and 1 at best; ``router_entropy`` is that of the loads, the mean
    over layers, 1 where they are uniform; ``dead_experts`` are those of all layers that no token went to;
    ``router_z`` is the mean squared log-partition.
    """
    loads = [c.double() / c.double().sum().clamp_min(1) for c in counts]
    n_layers = len(loads)
    entropies = [torch.special.entr(p).sum().item() / math.log(len(p)) for p in loads]
    return {
        "load_max_over_mean": max(p.max().item() * len(p) for p in loads),
        "router_entropy": sum(entropies) / n_layers,
        "dead_experts": float(sum((c == 0).sum().item() for c in counts)),
        "router_z": sum((s / m.clamp_min(1)).item() for s, m in zip(z, n, strict=True)) / n_layers,
    }
