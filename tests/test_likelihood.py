"""Likelihoods by the chain rule: proper distributions, those of the objective's own loss, batched or not."""

import itertools

import numpy as np
import pytest
import torch

from llmtrain.data.collate import collate
from llmtrain.errors import ConfigError
from llmtrain.evaluation.likelihood import Ask, FillsIn, WritesOn, likelihood_of
from llmtrain.evaluation.lines import Line, read
from llmtrain.evaluation.subject import Subject
from llmtrain.objectives import layouts
from llmtrain.objectives.base import Objective
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.objectives.corruption import Streams
from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.prefix import PrefixLM
from llmtrain.types import BOS, MODES, N_FIXED, Row
from tests.matrix import OBJECTIVES
from tests.tiny import ARCHS, FAMILIES, N_RESERVED, VOCAB, examples_of, model_of

WITH = {name: one for name, one in OBJECTIVES.items() if not name.startswith("contrastive")}
objectives = pytest.mark.parametrize("objective", WITH.values(), ids=WITH.keys())
CONTEXT = (BOS, *range(N_RESERVED, N_RESERVED + 5))


def subject(objective: Objective, arch: str = "plain", seq_len: int = 24) -> Subject:
    model = model_of(objective, ARCHS[arch]).double().eval()
    return Subject(model, objective, None, seq_len)  # type: ignore[arg-type]


def some_asks() -> list[Ask]:
    rng = np.random.default_rng(0)
    sizes = itertools.product((1, 4, 9), (1, 2, 7))
    words = [tuple(rng.integers(N_RESERVED, VOCAB.size, n + m).tolist()) for n, m in sizes]
    return [Ask((BOS, *w[: len(w) // 2]), w[len(w) // 2 :] or w) for w in words]


@objectives
def test_the_probabilities_of_all_continuations_of_two_tokens_add_up_to_one(objective):
    of = likelihood_of(subject(objective))
    pairs = list(itertools.product(range(VOCAB.size), repeat=2))
    nats = [answer.nats.sum() for answer in of.answer([Ask(CONTEXT, pair) for pair in pairs])]
    assert np.exp(-np.array(nats)).sum() == pytest.approx(1, abs=1e-9)


@objectives
@pytest.mark.parametrize("arch", FAMILIES)
def test_an_answer_is_the_same_alone_and_among_others(objective, arch):
    of = likelihood_of(subject(objective, arch))
    asks = some_asks()
    together = of.answer(asks)
    for ask, answer in zip(asks, together, strict=True):
        alone = of.answer([ask])[0]
        np.testing.assert_allclose(alone.nats, answer.nats, rtol=1e-9)
        assert alone.greedy == answer.greedy


@objectives
@pytest.mark.parametrize("arch", FAMILIES)
def test_a_context_that_many_share_is_as_if_it_were_read_for_each(objective, arch):
    of = likelihood_of(subject(objective, arch))
    asks = [Ask(CONTEXT, ask.continuation) for ask in some_asks()]
    for ask, answer in zip(asks, of.answer(asks), strict=True):
        alone = of.answer([ask])[0]
        np.testing.assert_allclose(alone.nats, answer.nats, rtol=1e-7)
        assert alone.greedy == answer.greedy


def test_it_is_greedy_iff_each_token_is_the_likeliest():
    of = likelihood_of(subject(CausalLM()))
    asks = [Ask(CONTEXT, (token,)) for token in range(VOCAB.size)]
    answers = of.answer(asks)
    likeliest = int(np.argmin([answer.nats[0] for answer in answers]))
    assert [answer.greedy for answer in answers] == [token == likeliest for token in range(VOCAB.size)]
    (second,) = of.answer([Ask(CONTEXT, (likeliest, 0))])
    after = of.answer([Ask((*CONTEXT, likeliest), (token,)) for token in range(VOCAB.size)])
    assert second.greedy == after[0].greedy


def test_of_a_causal_model_it_is_that_of_its_loss():
    one = subject(CausalLM())
    ids = np.array([BOS, *range(N_RESERVED, N_RESERVED + 12)])
    (answer,) = likelihood_of(one).answer([Ask((BOS,), tuple(ids[1:].tolist()))])
    batch: CausalBatch = examples_of(one.objective, [Row(ids, np.zeros(13, int))], seq_len=12)
    with torch.no_grad():
        assert answer.nats.sum() == pytest.approx(float(one.objective.loss(one.model, batch).nats[0]))


def test_a_prefix_model_reads_the_context_at_once():
    one = subject(PrefixLM())
    tokens = (N_RESERVED + 7, N_RESERVED + 8)
    (answer,) = likelihood_of(one).answer([Ask(CONTEXT, tokens)])
    ids = (*CONTEXT, tokens[0])
    at = (len(CONTEXT) - 1, len(CONTEXT))
    whole, none = (read(one.model, [Line(ids, at, tokens, prefix=n)])[0].nats for n in (len(CONTEXT), 0))
    np.testing.assert_array_equal(answer.nats, whole)
    assert np.abs(answer.nats - none).max() > 1e-6


@pytest.mark.parametrize("layout", ["encoder_decoder", "prefix", "causal"])
def test_of_a_denoiser_it_is_that_of_an_example_whose_end_is_noise(layout):
    one = subject(Denoising(layout=layout))
    mark, rest = N_FIXED, (N_RESERVED + 7, N_RESERVED + 8, N_RESERVED + 9, BOS)
    source, target = np.array([*CONTEXT, mark]), np.array([mark, *rest])
    streams = Streams(source, np.zeros(len(source), int), target, np.zeros(len(target), int))
    shape = layouts.shape(layout, len(source), len(target))
    example = layouts.arrange(streams, layout, shape, scored=float(len(target)), key=0)
    batch = collate([example])
    with torch.no_grad():
        whole = float(one.objective.loss(one.model, batch).nats[0])
    (answer,) = likelihood_of(one).answer([Ask(CONTEXT, rest)])
    begun = one.objective.beginning(CONTEXT)
    assert begun is not None and begun.prompt[-1] == mark
    before = tuple(begun.prompt[:-1])
    first = Line(
        before, (len(before) - 1,), (mark,), begun.prefix, tuple(begun.source) if begun.source else None
    )
    assert whole == pytest.approx(answer.nats.sum() + read(one.model, [first])[0].nats.sum())


def test_a_mixture_is_asked_by_the_noise_that_takes_out_endings():
    objective = OBJECTIVES["ul2"]
    begun = objective.beginning(CONTEXT)
    assert begun is not None and begun.source is not None
    assert begun.source == [MODES[1], *CONTEXT[1:], BOS] and begun.prompt == [BOS]
    middle = objective.beginning(CONTEXT[1:])
    assert middle is not None and middle.source == begun.source


@objectives
def test_a_context_without_room_loses_its_beginning_and_it_is_said(objective):
    one = subject(objective, seq_len=16)
    of = likelihood_of(one)
    words = tuple(range(N_RESERVED, N_RESERVED + 40))
    (long,) = of.answer([Ask((BOS, *words[:30]), words[30:34])])
    assert long.cut > 0
    (short,) = of.answer([Ask((BOS, *words[:30])[long.cut :], words[30:34])])
    assert short.cut == 0
    np.testing.assert_array_equal(long.nats, short.nats)


@objectives
def test_a_continuation_without_room_is_refused(objective):
    of = likelihood_of(subject(objective, seq_len=16))
    with pytest.raises(ConfigError, match="17 tokens are asked for at once"):
        of.answer([Ask((BOS,), tuple(range(N_RESERVED, N_RESERVED + 17)))])


def test_which_way_a_model_is_asked():
    ways = {name: type(likelihood_of(subject(one))) for name, one in WITH.items()}
    assert {name for name, way in ways.items() if way is FillsIn} == {"mlm", "mlm_words"}
    assert all(way is WritesOn for name, way in ways.items() if not name.startswith("mlm"))


def test_a_contrastive_model_has_no_likelihood_and_says_why():
    with pytest.raises(ConfigError, match="trained with Contrastive gives no likelihood"):
        likelihood_of(subject(OBJECTIVES["contrastive"]))
