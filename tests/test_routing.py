"""Losses, biases and reports of routers are those of the global batch, however it is cut."""

import datetime
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mlps.moe import MoE, MoEModule
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, Model, ModelConfig, TokenHead
from llmtrain.nn.routing import by_layer, n_tokens, over_ranks, report, routers, routing_loss, update_biases
from llmtrain.types import Routing, Seq, Visibility
from tests.tiny import VOCAB, noise, stream

D = 16
WORLD = 2
LAYERS = (
    Layer(mixer=Attention(head_dim=8), mlp=MoE(n_experts=4, balance=0.3, z_loss=0.2)),
    Layer(mixer=Attention(head_dim=8), mlp=SwiGLU()),
    Layer(mixer=Attention(head_dim=8), mlp=MoE(n_experts=6, top_k=3, balance=0.1, scores="sigmoid")),
)
ROWS = ((9,), (3, 2), (7,), ())  # the second rank of two gets fewer tokens


def model(*, encoder: bool = False) -> Model:
    head = TokenHead(D, VOCAB.size)
    cfg = ModelConfig(n_layers=3, d_model=D, layers=LAYERS, cross=CrossAttention(head_dim=8))
    made = Model(cfg, Visibility.CAUSAL, vocab_size=VOCAB.size, head=head, encoder=encoder)
    initialise(made, n_layers=3, seed=0)
    return made.double()


class Regularised(nn.Module):
    """What a task does: a forward pass and the losses of its routers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model()

    def forward(self, seq: Seq) -> Tensor:
        return routing_loss(routers(self.model), self.model(seq).routing)


def layer(**fields: object) -> MoEModule:
    return MoE(**{"n_experts": 4, "z_loss": 0.0, **fields}).build(D, Visibility.CAUSAL).double()


def routing(*loads: float, z: float = 0.0) -> Routing:
    """As top-1 routers with probabilities equal to their choices would count."""
    counts = torch.tensor(loads, dtype=torch.float64)
    return Routing(counts, counts.clone(), torch.tensor(z, dtype=torch.float64))


def test_routers_are_in_the_order_of_a_forward_pass():
    made = model(encoder=True)
    met: list[nn.Module] = []
    for module in made.modules():
        if isinstance(module, MoEModule):
            module.register_forward_hook(lambda module, args, out: met.append(module))
    out = made(stream(((6,),), 6), stream(((5,),), 5, Visibility.BIDIRECTIONAL))
    assert met == routers(made)
    assert [len(r.counts) for r in out.routing] == [len(m.down) for m in met] == [4, 6, 4, 6]


def test_the_balance_loss_is_least_where_loads_are_uniform():
    one = layer(balance=0.5)
    assert routing_loss([one], [routing(5, 5, 5, 5)]).item() == pytest.approx(0.5)
    assert routing_loss([one], [routing(20, 0, 0, 0)]).item() == pytest.approx(2.0)  # E times as much
    logits = 0.1 * noise(20, 4)
    for _ in range(300):  # its gradient evens out what the router would choose
        logits.requires_grad_()
        p = logits.softmax(-1)
        counts = torch.bincount(p.argmax(-1), minlength=4).double()
        loss = routing_loss([one], [Routing(counts, p.sum(0), p.new_zeros(()))])
        logits = logits.detach() - torch.autograd.grad(loss, logits)[0]
    assert loss.item() == pytest.approx(0.5, abs=0.01)


def test_the_z_loss_is_the_mean_squared_log_partition_of_real_tokens():
    one, seq = layer(balance=0.0, z_loss=0.7), stream(((5, 2), (3,)), 8)
    initialise(one, n_layers=1, seed=0)
    x = noise(*seq.doc.shape, D)
    z = (x @ one.router.weight.T).logsumexp(-1).square()[seq.doc >= 0].mean()
    torch.testing.assert_close(routing_loss([one], one(x, seq).routing), 0.7 * z, rtol=0, atol=1e-12)


def test_no_gradient_flows_through_loads_and_each_layer_has_its_own_weights():
    made = model()
    layers, seq = routers(made), stream(ROWS, 9)
    out = made(seq).routing
    expected = 0
    for one, r in zip(layers, out, strict=True):
        n = (seq.doc >= 0).sum()
        assert n_tokens(r) == n and r.counts.sum() == one.cfg.top_k * n
        assert not r.counts.requires_grad
        share = r.counts / r.counts.sum()
        expected += one.cfg.balance * len(share) * (share * r.prob / n).sum() + one.cfg.z_loss * r.z / n
    torch.testing.assert_close(routing_loss(layers, out), expected, rtol=0, atol=1e-12)


def test_passes_add_up_to_that_of_the_whole_batch():
    """Towers, chunks of a batch and micro batches: one after the other, layer by layer."""
    made, seq = model(), stream(ROWS, 9)
    layers = routers(made)
    whole = made(seq).routing
    parts = [r for i in range(4) for r in made(Seq(*(part[i : i + 1] for part in seq))).routing]
    for a, b in zip(by_layer(len(layers), parts), whole, strict=True):
        for ours, expected in zip(a, b, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(routing_loss(layers, parts), routing_loss(layers, whole), rtol=0, atol=1e-12)
    with pytest.raises(AssertionError):
        by_layer(len(layers), parts[:-1])


def test_a_batch_of_padding_alone_costs_nothing():
    made = model()
    out = made(stream(((), ()), 4)).routing
    loss = routing_loss(routers(made), out)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_without_weights_there_is_no_loss():
    loss = routing_loss([layer(balance=0.0)], [routing(3, 1, 0, 0, z=9.0)])
    assert loss.item() == 0


# biases


def test_the_bias_brings_an_unbalanced_router_to_balance():
    one = layer(bias_rate=0.01, balance=0.0, scores="sigmoid")
    initialise(one, n_layers=1, seed=0)
    seq = stream(((160,),), 160)
    x = noise(1, 160, D)
    with torch.no_grad():  # a direction that all tokens share, which the first expert likes
        x += one.router.weight[0] / one.router.weight[0].norm() * 4
        history = []
        for _ in range(80):
            counts = one(x, seq).routing[0].counts
            history.append(report([counts], [x.new_zeros(())], [x.new_ones(())])["load_max_over_mean"])
            update_biases([one], [counts])
    assert history[0] > 1.7
    assert max(history[-5:]) < 1.1
    assert abs(one.bias.mean().item()) < 1e-12
    assert one.bias[0] == one.bias.min()


def test_a_bias_moves_by_its_rate_against_its_load_and_is_recentred():
    one, other = layer(bias_rate=0.1), layer()
    update_biases([one, other], [torch.tensor([9.0, 4.0, 4.0, 3.0]), torch.ones(4)])
    moved = torch.tensor([-0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    torch.testing.assert_close(one.bias, moved - moved.mean())
    assert "bias" not in dict(other.named_buffers())  # nothing to keep where nothing moves
    assert "bias" in one.state_dict() and "bias" not in dict(one.named_parameters())


# what is logged


def test_a_report_of_even_and_of_dead_experts():
    n = torch.tensor(8.0)
    even = report([torch.full((4,), 4.0)] * 2, [torch.tensor(16.0), torch.tensor(0.0)], [n, n])
    assert even == {
        "load_max_over_mean": 1.0,
        "router_entropy": pytest.approx(1.0),
        "dead_experts": 0.0,
        "router_z": 1.0,
    }
    lopsided = report(
        [torch.tensor([8.0, 8.0, 0.0, 0.0]), torch.full((2,), 8.0)], [torch.tensor(0.0)] * 2, [n, n]
    )
    assert lopsided["load_max_over_mean"] == 2.0  # of the worst layer
    assert lopsided["router_entropy"] == pytest.approx((0.5 + 1) / 2)
    assert lopsided["dead_experts"] == 2.0
    nothing = report([torch.zeros(4)], [torch.tensor(0.0)], [torch.tensor(0.0)])
    assert all(math.isfinite(value) for value in nothing.values())


# ranks


def losses_and_gradients(task: nn.Module, seq: Seq) -> tuple[Tensor, list[Tensor]]:
    loss = task(seq)
    loss.backward()
    return loss.detach(), [p.grad for p in task.parameters() if p.grad is not None]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    task, seq = Regularised(), stream(ROWS, 9)
    whole, expected = losses_and_gradients(task, seq)  # before there are ranks
    counted = [r.counts for r in task.model(seq).routing]
    task.zero_grad(set_to_none=True)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=60)
    )
    try:
        mine = Seq(*(part[2 * rank : 2 * rank + 2] for part in seq))
        split = DistributedDataParallel(task, find_unused_parameters=True)
        loss, gradients = losses_and_gradients(split, mine)
        mean = over_ranks([loss])[0] / WORLD
        torch.testing.assert_close(mean, whole, rtol=0, atol=1e-12)
        for ours, one in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, one, rtol=0, atol=1e-12)
        totals = over_ranks([r.counts for r in task.model(mine).routing])
        assert all(torch.equal(a, b) for a, b in zip(totals, counted, strict=True))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_unequal_tokens_are_one_in_loss_and_gradient(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=WORLD)
