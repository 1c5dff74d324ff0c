"""RMS normalisation on a CPU equals the reference, in value and gradient, however much is worked on at a time."""

import pytest
import torch

from llmtrain.ops import norm
from llmtrain.ops.norm import rms_norm, rms_norm_reference
from tests.tiny import noise

D = 12
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def results(function, shape, dtype):
    x = noise(*shape, D, seed=1, dtype=dtype).requires_grad_()
    weight = (1 + 0.3 * noise(D, seed=2, dtype=dtype)).requires_grad_()
    y = function(x, weight, 1e-3)
    return [y, *torch.autograd.grad(y, (x, weight), noise(*shape, D, seed=3, dtype=dtype))]


@pytest.mark.parametrize("at_once", [1 << 19, 4 * D, 1])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(), (1,), (3, 7), (2, 3, 5), (0,)])
def test_it_equals_the_reference(monkeypatch, shape, dtype, at_once):
    monkeypatch.setattr(norm, "_AT_ONCE", at_once)
    for ours, theirs in zip(*(results(f, shape, dtype) for f in (rms_norm, rms_norm_reference)), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype])


def test_strides_do_not_matter():
    x = noise(4, 3, D, seed=1).transpose(0, 1).requires_grad_()
    weight = noise(D, seed=2).requires_grad_()
    along = noise(4, 3, D, seed=3).transpose(0, 1)
    both = []
    for f in (rms_norm, rms_norm_reference):
        y = f(x, weight, 1e-6)
        both.append([y, *torch.autograd.grad(y, (x, weight), along)])
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
