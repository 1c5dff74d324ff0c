"""Queries and keys normalised and rotated in one sweep equal the reference, in value and gradient."""

import pytest
import torch

from llmtrain.ops import qk
from llmtrain.ops.dtypes import at_least_float32
from llmtrain.ops.qk import norm_and_rotate, norm_and_rotate_reference, norm_heads, norm_heads_reference
from llmtrain.ops.rope import rotation
from tests.tiny import noise

D = 8
# relative to the largest entry: rounding of each dtype, a few sums deep
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(params=[1 << 18, 7 * 6 * D], ids=["a row at a time", "seven tokens at a time"])
def at_once(request, monkeypatch):
    monkeypatch.setattr(qk, "_AT_ONCE", request.param)


def results(function, n_heads, n_kv_heads, dtype):
    wide = at_least_float32(dtype)
    qkv = noise(3, 20, (n_heads + 2 * n_kv_heads) * D, seed=1).to(dtype).requires_grad_()
    gains = [(1 + 0.2 * noise(D, seed=seed)).to(wide).requires_grad_() for seed in (2, 3)]
    pos = torch.stack([torch.arange(20), torch.arange(20) % 9, torch.arange(20) + 500])
    turn = rotation(pos, d=D, base=10_000.0, dtype=wide)
    out = function(qkv, *gains, turn, n_heads=n_heads, eps=1e-6)
    along = [noise(*x.shape, seed=4 + i).to(x.dtype) for i, x in enumerate(out)]
    return [*out, *torch.autograd.grad(out, [qkv, *gains], along)]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (6, 2), (1, 1)])
def test_one_sweep_equals_the_reference(n_heads, n_kv_heads, dtype):
    both = [results(f, n_heads, n_kv_heads, dtype) for f in (norm_and_rotate, norm_and_rotate_reference)]
    for ours, theirs in zip(*both, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max()


def test_values_are_the_same_in_every_bit():
    for dtype in TOLERANCE:
        ours, theirs = (results(f, 6, 2, dtype)[:3] for f in (norm_and_rotate, norm_and_rotate_reference))
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "rest"), [(4, 0), (2, 2), (1, 3)])
def test_some_heads_normalised_and_not_rotated(n, rest, dtype):
    both = []
    for function in (norm_heads, norm_heads_reference):
        x = noise(3, 20, (n + rest) * D, seed=1).to(dtype).requires_grad_()
        gain = (1 + 0.2 * noise(D, seed=2)).to(at_least_float32(dtype)).requires_grad_()
        out = function(x, gain, n=n, eps=1e-6)
        along = [noise(*y.shape, seed=4 + i).to(y.dtype) for i, y in enumerate(out)]
        both.append([*out, *torch.autograd.grad(out, [x, gain], along)])
    for ours, theirs in zip(*both, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.numel() == 0 or (ours - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max()


def test_one_part_without_a_gradient():
    """Keys alone are asked for: the others' gradients arrive as zeros."""
    qkv = noise(1, 5, 3 * D, seed=1).requires_grad_()
    gain = torch.ones(D, dtype=qkv.dtype)
    turn = rotation(torch.arange(5)[None], d=D, base=10_000.0, dtype=qkv.dtype)
    _, k, _ = norm_and_rotate(qkv, gain, gain, turn, n_heads=1, eps=1e-6)
    (grad,) = torch.autograd.grad(k.square().sum() + k.sum(), qkv)
    assert grad[..., D : 2 * D].abs().min() > 0
    assert not grad[..., :D].any() and not grad[..., 2 * D :].any()
