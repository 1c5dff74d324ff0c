"""Dropout by address: masks are those of chance, and nothing but key, place and position decides them."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.model import Model, ModelConfig, TokenHead
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops.dropout import dropout
from llmtrain.types import Visibility
from tests.tiny import DENSE, VOCAB, model_of, noise, stream

KEYS = torch.tensor([0, 1, 2**62 - 1, 7, 8])
SHAPE = (len(KEYS), 64, 64)
CFG = ModelConfig(**{**vars(DENSE["plain"]), "dropout": 0.25})


def kept(p: float = 0.25, place: int = 3, keys: Tensor = KEYS) -> Tensor:
    return dropout(torch.ones(len(keys), *SHAPE[1:]), p, keys, place) != 0


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_others_keep_the_mean(p):
    y = dropout(torch.ones(SHAPE, dtype=torch.float64), p, KEYS, 3)
    n = y.numel()
    assert set(y.unique().tolist()) <= {0.0, 1 / (1 - p)}
    assert abs((y == 0).double().mean().item() - p) <= 4 * (p * (1 - p) / n) ** 0.5
    by_row = (y == 0).double().mean((1, 2))
    assert ((by_row - p).abs() <= 4 * (p * (1 - p) / (n / len(KEYS))) ** 0.5).all()


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


def test_rows_places_and_positions_are_independent():
    """No pair of masks, of neighbouring positions, of features or of places correlates more than chance."""
    by_place = [kept(place=place) for place in (0, 1, 2, 3, 1 << 20)]
    limit = 5 / 64  # five standard errors of the 64 x 64 elements of a row
    masks = [row for masks in by_place for row in masks]
    for a, b in itertools.combinations(masks, 2):
        assert abs(correlation(a, b)) < limit
    for mask in masks:
        assert abs(correlation(mask[1:], mask[:-1])) < limit
        assert abs(correlation(mask[:, 1:], mask[:, :-1])) < limit


def test_no_two_places_are_alike():
    masks = {
        kept(place=place, keys=KEYS[:1]).numpy().tobytes()
        for place in (*range(200), *range(1 << 20, (1 << 20) + 200))
    }
    assert len(masks) == 400


def test_a_mask_does_not_depend_on_the_rows_beside_it_or_their_order():
    whole, order = kept(), torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(kept(keys=KEYS[order]), whole[order])
    assert torch.equal(torch.cat([kept(keys=KEYS[:2]), kept(keys=KEYS[2:])]), whole)


def test_a_longer_row_begins_with_the_mask_of_a_shorter_one():
    long = dropout(torch.ones(len(KEYS), 80, 64), 0.25, KEYS, 3) != 0
    assert torch.equal(long[:, :64], kept())


def test_the_gradient_is_masked_and_scaled_as_the_value_is():
    x = noise(2, 8, 16).requires_grad_()
    y = dropout(x, 0.25, KEYS[:2], 3)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0).double() / 0.75)
    torch.testing.assert_close(y, x * x.grad, rtol=0, atol=1e-14)


# in a model


def two_streams() -> Model:
    cfg = ModelConfig(**{**vars(CFG), "cross": CrossAttention(head_dim=8)})
    head = TokenHead(32, VOCAB.size)
    return Model(cfg, Visibility.CAUSAL, vocab_size=VOCAB.size, head=head, encoder=True)


def test_every_place_of_a_model_has_its_own_number(monkeypatch):
    """The embedding and all parts of all blocks, of the encoder and of the decoder."""
    seen: list[int] = []

    def recorded(x: Tensor, p: float, key: Tensor, place: int) -> Tensor:
        assert p == 0.25
        seen.append(place)
        return dropout(x, p, key, place)

    monkeypatch.setattr("llmtrain.nn.model.dropout", recorded)
    target, source = stream(((3, 4), (7,)), 8), stream(((5, 2), (6,)), 7, Visibility.BIDIRECTIONAL)
    model = two_streams()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    model(target, source, key=KEYS[:2])
    assert len(seen) == len(set(seen)) == (1 + 2 * 2) + (1 + 2 * 3)


def test_nothing_is_dropped_in_evaluation_without_a_key_or_at_rate_0():
    seq = stream(((6, 5), (12,)), 12)
    model = model_of(CausalLM(), CFG).double()
    dropped = model(seq, key=KEYS[:2]).h
    plain = model(seq).h
    assert torch.equal(model.eval()(seq, key=KEYS[:2]).h, plain)
    none = model_of(CausalLM(), DENSE["plain"]).double()
    assert torch.equal(none(seq, key=KEYS[:2]).h, plain)
    assert not torch.isclose(dropped, plain).any(-1).all()


def test_two_keys_make_two_views_of_one_text_and_one_key_makes_one():
    row = stream(((12,),), 12)
    seq = type(row)(*(part.repeat(3, 1) for part in row))
    h = model_of(CausalLM(), CFG).double()(seq, key=torch.tensor([5, 5, 6])).h
    torch.testing.assert_close(h[0], h[1], rtol=0, atol=1e-12)
    assert (h[0] - h[2]).abs().max() > 0.1


def gradients(model: Model, h: Tensor) -> list[Tensor]:
    params: Any = list(model.trunk.parameters())
    return list(torch.autograd.grad(h.square().sum(), params))


def test_a_forward_pass_that_is_made_anew_drops_the_same():
    seq = stream(((6, 5), (12,)), 12)
    model = model_of(CausalLM(), CFG).double()
    h = model(seq, key=KEYS[:2]).h
    again = checkpoint(lambda: model(seq, key=KEYS[:2]).h, use_reentrant=False, preserve_rng_state=False)
    assert torch.equal(again, h)
    for a, b in zip(gradients(model, h), gradients(model, again), strict=True):
        assert torch.equal(a, b)
