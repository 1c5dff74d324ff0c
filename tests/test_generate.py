"""Generation is the model itself, one token at a time, and a seed is the text."""

import numpy as np
import pytest
import torch

from llmtrain import philox
from llmtrain.nn.generate import Sampling, generate, pick
from llmtrain.nn.model import Model
from llmtrain.objectives.causal import CausalLM
from llmtrain.types import BOS, Seq
from tests.tiny import DENSE, N_RESERVED, VOCAB, model_of, noise, words

CLM = CausalLM()
GREEDY = Sampling(temperature=0.0, top_p=1.0)
PROMPT = [BOS, 40, 33, 41, 40]
BANNED = [i for i in range(N_RESERVED) if i != BOS]


def rng(seed: int) -> np.random.Generator:
    return philox.generator(seed, "test")


def sharp(name: str = "plain") -> Model:
    """A model whose logits are far apart, so that greedy choices are no coincidence of rounding."""
    model = model_of(CLM, DENSE[name]).double()
    model.head.weight.data *= 3
    return model


def logits_of(model: Model, ids: list[int]) -> torch.Tensor:
    text = torch.tensor([ids])
    zero = torch.zeros_like(text)
    return model.head(model(Seq(text, zero, torch.arange(len(ids))[None], zero.bool())).h[0, -1])


def allowed(logits: torch.Tensor) -> torch.Tensor:
    hidden = [i for i in range(N_RESERVED) if i != BOS]
    return logits.index_fill(0, torch.tensor(hidden), -torch.inf)


@pytest.mark.parametrize("name", DENSE)
@torch.no_grad()
def test_greedy_is_the_argmax_of_the_full_forward_at_every_position(name):
    model = sharp(name)
    made = generate(model, PROMPT, n_tokens=20, n_reserved=N_RESERVED, sampling=GREEDY, rng=rng(0))
    assert made
    for i, token in enumerate(made):
        assert token == allowed(logits_of(model, PROMPT + made[:i])).argmax().item()
    if len(made) < 20:
        assert allowed(logits_of(model, PROMPT + made)).argmax().item() == BOS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_nucleus_of_nothing_is_greedy(temperature):
    model = sharp()
    narrow = Sampling(temperature=temperature, top_p=1e-9)
    ours, greedy = (
        generate(model, PROMPT, n_tokens=20, n_reserved=N_RESERVED, sampling=s, rng=rng(0))
        for s in (narrow, GREEDY)
    )
    assert ours == greedy


def test_a_seed_is_the_text():
    model = model_of(CLM, DENSE["gqa"])
    one, again, other = (
        generate(
            model,
            PROMPT,
            n_tokens=20,
            n_reserved=N_RESERVED,
            sampling=Sampling(temperature=1.0),
            rng=rng(seed),
        )
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_generation_ends_where_the_document_does():
    model = model_of(CLM, DENSE["gqa"])
    model.head.weight.data.zero_()  # every allowed token is as likely
    assert (
        generate(model, PROMPT, n_tokens=20, n_reserved=N_RESERVED, sampling=GREEDY, rng=rng(0)) == []
    )  # BOS is the first of equals
    even = Sampling(temperature=1.0, top_p=1.0)
    lengths = [
        len(generate(model, PROMPT, n_tokens=20, n_reserved=N_RESERVED, sampling=even, rng=rng(seed)))
        for seed in range(8)
    ]
    assert max(lengths) <= 20
    assert min(lengths) < 20  # one token in 49 is BOS
    made = generate(model, PROMPT, n_tokens=60, n_reserved=N_RESERVED, sampling=even, rng=rng(3))
    assert all(token >= N_RESERVED for token in made)


def test_no_reserved_id_is_ever_picked_but_bos():
    logits = torch.zeros(VOCAB.size)
    logits[:N_RESERVED] = 50.0
    assert pick(logits, Sampling(temperature=1.0, top_p=1.0), rng(0), banned=BANNED) == BOS
    assert pick(logits, GREEDY, rng(0), banned=BANNED) == BOS


def test_a_nucleus_is_the_fewest_tokens_that_hold_the_mass():
    p = torch.full((VOCAB.size,), 1e-9)
    p[40:44] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    for top_p, expected in ((0.3, {40}), (0.5, {40, 41}), (0.75, {40, 41, 42}), (0.95, {40, 41, 42, 43})):
        drawn = {
            pick(p.log(), Sampling(temperature=1.0, top_p=top_p), rng(seed), banned=BANNED)
            for seed in range(100)
        }
        assert drawn == expected


def test_draws_follow_the_tempered_distribution():
    logits = noise(VOCAB.size) / 2
    n = 3000
    drawn = np.bincount(
        [pick(logits, Sampling(temperature=0.7, top_p=1.0), rng(i), banned=BANNED) for i in range(n)],
        minlength=VOCAB.size,
    )
    p = allowed(logits / 0.7).softmax(0).numpy()
    assert (np.abs(drawn - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9).all()


def test_samples_go_on_from_the_first_half_of_a_row():
    rows = [words(21, seed=i) for i in range(2)]
    model = model_of(CLM, DENSE["plain"])

    def decode(ids):
        return " ".join(str(i) for i in ids)

    samples = CLM.samples(model, rows, VOCAB, decode, seq_len=24, seed=0)
    assert [s.given for s in samples] == [decode(row.ids[:10].tolist()) for row in rows]
    assert all(len(s.made.split()) <= 11 for s in samples)
    assert (
        samples
        == CLM.samples(model, rows, VOCAB, decode, seq_len=24, seed=0)
        != CLM.samples(model, rows, VOCAB, decode, seq_len=24, seed=1)
    )


@pytest.mark.parametrize(
    ("given", "says"), [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")]
)
def test_impossible_sampling_is_refused(given, says):
    with pytest.raises(ValueError, match=f"{says} must"):
        Sampling(**given)
