"""The chunked cross-entropy equals the plain one, in value and gradient, and never holds all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.ops import loss as ops
from llmtrain.ops.loss import linear_cross_entropy, linear_cross_entropy_reference
from llmtrain.types import IGNORE
from tests.tiny import noise

N, D, V = 37, 12, 50
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def problem(dtype: torch.dtype = torch.float64, *, n: int = N, v: int = V) -> tuple[Tensor, Tensor, Tensor]:
    h, weight = noise(n, D, seed=1, dtype=dtype), noise(v, D, seed=2, dtype=dtype)
    targets = torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(3))
    targets[::5] = IGNORE
    return h.requires_grad_(), weight.requires_grad_(), targets


def everything(loss, h: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> list[Tensor]:
    out = loss(h, weight, targets, z_loss=z_loss)
    return [out.total, out.nats, *torch.autograd.grad(out.total * 0.7, (h, weight))]


def chunk_of(monkeypatch, positions: int, v: int = V) -> None:
    """And of each chunk three positions are made wide at a time."""
    monkeypatch.setattr(ops, "chunk_elements", lambda device: positions * v)
    monkeypatch.setattr(ops, "_AT_ONCE", 3 * v)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("positions", [0, 1, 5, N, 1000])
def test_chunks_of_any_size_equal_the_reference(monkeypatch, positions, z_loss, dtype):
    chunk_of(monkeypatch, positions)
    given = problem(dtype)
    ours, theirs = (
        everything(loss, *given, z_loss) for loss in (linear_cross_entropy, linear_cross_entropy_reference)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_reference_is_torchs_cross_entropy_in_nats():
    h, weight, targets = problem()
    out = linear_cross_entropy_reference(h, weight, targets)
    expected = F.cross_entropy(h @ weight.T, targets, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(out.total, expected)
    torch.testing.assert_close(out.nats.sum(), expected)
    assert not out.nats[targets == IGNORE].any()


def test_the_z_loss_is_in_the_total_and_not_in_the_nats(monkeypatch):
    chunk_of(monkeypatch, 7)
    h, weight, targets = problem()
    plain, with_z = (linear_cross_entropy(h, weight, targets, z_loss=z) for z in (0.0, 0.1))
    assert torch.equal(plain.nats, with_z.nats)
    squares = (h @ weight.T).logsumexp(-1)[targets != IGNORE].square().sum()
    torch.testing.assert_close(with_z.total - plain.total, 0.1 * squares)


def test_nothing_scored_costs_nothing(monkeypatch):
    chunk_of(monkeypatch, 7)
    h, weight, targets = problem()
    for x in everything(linear_cross_entropy, h, weight, torch.full_like(targets, IGNORE), 0.1):
        assert not x.any()


def test_a_tied_table_gets_the_gradient_of_both_its_uses(monkeypatch):
    chunk_of(monkeypatch, 7)
    _, table, targets = problem()
    ids = torch.arange(N) % V

    def gradient(loss) -> Tensor:
        return torch.autograd.grad(loss(F.embedding(ids, table).tanh(), table, targets).total, table)[0]

    torch.testing.assert_close(gradient(linear_cross_entropy), gradient(linear_cross_entropy_reference))


@pytest.mark.parametrize("frozen", ["h", "weight"])
def test_one_of_the_two_may_be_frozen(monkeypatch, frozen):
    chunk_of(monkeypatch, 7)
    h, weight, targets = problem()
    wanted = weight if frozen == "h" else h
    (h if frozen == "h" else weight).requires_grad_(False)
    ours, theirs = (
        torch.autograd.grad(loss(h, weight, targets).total, wanted)[0]
        for loss in (linear_cross_entropy, linear_cross_entropy_reference)
    )
    torch.testing.assert_close(ours, theirs)


def test_scoring_needs_no_gradient_and_makes_none(monkeypatch):
    chunk_of(monkeypatch, 7)
    given = problem()
    expected = linear_cross_entropy_reference(*given)
    with torch.no_grad(), Largest() as made:
        out = linear_cross_entropy(*given)
    torch.testing.assert_close(out.total, expected.total.detach())
    torch.testing.assert_close(out.nats, expected.nats)
    assert not out.total.requires_grad
    assert made.numel <= max(7 * V, V * D)  # a chunk; the table's transpose is a view


def test_bfloat16_autocast_stays_near_float32_and_returns_its_gradients(monkeypatch):
    chunk_of(monkeypatch, 7)
    h, weight, targets = problem(torch.float32)
    exact = everything(linear_cross_entropy_reference, h, weight, targets, 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = everything(linear_cross_entropy, h, weight, targets, 1e-4)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()  # bfloat16 has 8 bits


class Largest(TorchDispatchMode):
    """The size of the largest tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_all_logits_are_never_held(monkeypatch):
    """The largest tensor of forward and backward is a chunk of logits or the table, whatever the batch."""
    n, v = 600, 500
    chunk_of(monkeypatch, 20, v)
    given = problem(n=n, v=v)
    with Largest() as made:
        everything(linear_cross_entropy, *given, 1e-4)
    assert made.numel <= max(20 * v, n * D, v * D) < n * v / 10
    with Largest() as made:
        everything(linear_cross_entropy_reference, *given, 1e-4)
    assert made.numel >= n * v  # the measure sees what it is for


def test_a_gpu_gets_larger_products_than_a_cpu():
    cpu, gpu = ops.chunk_elements("cpu"), ops.chunk_elements("cuda")
    assert cpu * 2 == 32 << 20  # bytes of bfloat16
    assert gpu == 8 * cpu
