"""Every layer hears exactly what ``visible`` (and its own window) allows: by gradient, and by perturbation."""

import pytest
import torch
from torch import Tensor

from llmtrain.nn.model import Block, ModelConfig
from llmtrain.ops import backend
from llmtrain.ops.mask import mask
from llmtrain.types import Seq, Visibility, visible
from tests.tiny import DENSE, mixed, noise

layers = pytest.mark.parametrize("cfg", DENSE.values(), ids=DENSE.keys())
visibilities = pytest.mark.parametrize("visibility", Visibility)
kernels = pytest.mark.parametrize("kernel", ["reference", "masked", "by_document", "tiled"])


def block_of(cfg: ModelConfig, visibility: Visibility) -> Block:
    """One block in float64: a stack would hide what one of its layers cannot see."""
    block = Block(cfg, 0, visibility, cross=False).double()
    for i, p in enumerate(block.parameters()):
        p.data = noise(*p.shape, seed=i) * (0.3 if p.ndim > 1 else 1.0)
    return block


def window_of(cfg: ModelConfig) -> int | None:
    return getattr(cfg.layer(0).mixer, "window", None)


def allowed(cfg: ModelConfig, seq: Seq) -> Tensor:
    """[B T B S]: whether (b, i) may hear (b', j), rows being apart."""
    seen = mask(seq, seq, window_of(cfg))
    n_rows, n_tokens = seq.doc.shape
    out = torch.zeros(n_rows, n_tokens, n_rows, n_tokens, dtype=torch.bool)
    for r in range(n_rows):
        out[r, :, r] = seen[r]
    return out


@kernels
@visibilities
@layers
def test_gradient_reaches_exactly_what_is_visible(cfg, visibility, kernel):
    """d out[i] / d in[j] is nonzero iff i may see j: no leak, and no blindness, in the mixer alone and in the block."""
    seq, block = mixed(visibility), block_of(cfg, visibility)
    x = noise(*seq.doc.shape, 32, seed=7).requires_grad_()
    along = noise(32, seed=8)  # a sum after a norm could cancel
    truth = allowed(cfg, seq)
    itself = torch.eye(seq.doc.numel(), dtype=torch.bool).view_as(truth)  # the residual stream
    with backend.force(attention=kernel):
        for out, expected in (
            (block.mixer(x, seq), truth),
            (block(x, seq, None).h, truth | itself),
        ):
            heard = [
                torch.autograd.grad(y @ along, x, retain_graph=True)[0].norm(dim=-1)
                for y in out.flatten(0, 1)
            ]
            reach = torch.stack(heard).view_as(truth)
            assert torch.equal(reach > 1e-9 * reach.max(), expected)


@kernels
@visibilities
@layers
@torch.no_grad()
def test_a_token_changes_exactly_the_outputs_that_may_see_it(cfg, visibility, kernel):
    """The others keep every bit: a discrete choice leaks without a gradient. One column of all rows at a time."""
    seq, block = mixed(visibility), block_of(cfg, visibility)
    x = noise(*seq.doc.shape, 32, seed=7)
    n = seq.doc.shape[1]
    truth = mask(seq, seq, window_of(cfg)) | torch.eye(n, dtype=torch.bool)
    with backend.force(attention=kernel):
        before = block(x, seq, None).h
        for j in range(n):
            other = x.clone()
            other[:, j] = noise(len(x), 32, seed=9)
            changed = (block(other, seq, None).h != before).any(-1)
            assert torch.equal(changed, truth[:, :, j])


@visibilities
def test_padding_sees_nothing_and_is_never_seen(visibility):
    seq = mixed(visibility)
    seen = visible(seq, seq)
    assert (seq.doc < 0).any()
    assert not seen[seq.doc < 0].any()
    assert not seen.transpose(1, 2)[seq.doc < 0].any()


def test_visible_is_what_its_sentence_says():
    for visibility in Visibility:
        seq = mixed(visibility)
        doc, pos, prefix = (x.tolist() for x in seq[1:])
        for r, seen in enumerate(visible(seq, seq).tolist()):
            for i, row in enumerate(seen):
                for j, sees in enumerate(row):
                    same = doc[r][i] == doc[r][j] >= 0
                    assert sees == (same and (pos[r][j] <= pos[r][i] or prefix[r][j]))
