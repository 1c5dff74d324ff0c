"""Yardsticks of generation: the same bytes for all, at chance where nothing is known, right where all is."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.errors import DataError
from llmtrain.evaluation.base import Document, HeldOutTexts, Items
from llmtrain.evaluation.baselines import Uniform, unigram
from llmtrain.evaluation.choice import Question, choice, read_questions
from llmtrain.evaluation.cloze import best, cloze, reciprocal_rank
from llmtrain.evaluation.generation import generation_baselines, generation_tasks, generation_yardsticks
from llmtrain.evaluation.likelihood import Answer, Ask, Likelihood, likelihood_of
from llmtrain.evaluation.minimal_pairs import Pair, by_likelihood, minimal_pairs, read_pairs
from llmtrain.evaluation.order0 import entropy, order0
from llmtrain.evaluation.perplexity import perplexity, stretches
from llmtrain.evaluation.proportions import LIKE_CHANCE, over_groups, wilson
from llmtrain.evaluation.pseudo import begins_word, pseudo_nats
from llmtrain.evaluation.settings import Generation
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.suffix import suffix
from llmtrain.evaluation.tasks import at_most
from llmtrain.evaluation.windows import asks, windows
from llmtrain.nn.init import initialise
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.masked import MaskedLM
from llmtrain.types import BOS
from tests.endings import cloze_items
from tests.runs import SHARED, write_text
from tests.tiny import ARCHS


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return write_text(tmp_path_factory.mktemp("text"), 60_000).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, text) -> dict[str, Tokenizer]:
    kinds = {"bytes": Bytes(n_sentinels=0), "pieces": SentencePiece(vocab_size=400, n_sentinels=0)}
    return {
        name: kind.build(lambda: iter([text]), tmp_path_factory.mktemp(name)) for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def documents(text) -> tuple[Document, ...]:
    return tuple(
        Document(f"file{i}", text[start : start + 6_000]) for i, start in enumerate(range(0, 60_000, 6_000))
    )


def subject(objective, tokenizer: Tokenizer, seq_len: int = 128) -> Subject:
    model = objective.build(ARCHS["plain"], tokenizer.vocab_size)
    initialise(model, n_layers=2, seed=0)
    return Subject(model.eval(), objective, tokenizer, seq_len)


class Knows(Likelihood):
    """Holds the continuations that it knows for certain, and all others for as unlikely."""

    def __init__(self, known: Sequence[Ask]) -> None:
        self._known = set(known)

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        return [Answer(np.full(len(a.continuation), 0.0 if a in self._known else 9.0), True) for a in asks]


def test_every_tokenizer_is_asked_for_the_same_bytes(tokenizers, documents):
    found = at_most(windows(documents, 256), 20)
    for tokenizer in tokenizers.values():
        for window, ask in zip(found, asks(found, tokenizer, ends=True), strict=True):
            assert tokenizer.decode(ask.context) == window.given
            assert tokenizer.decode(ask.continuation) == window.asked
            assert (ask.continuation[-1] == BOS) == window.ends
            assert (ask.context[0] == BOS) == window.begins


def test_a_model_that_holds_all_tokens_for_alike_is_at_the_chance_of_the_suffix(tokenizers, documents):
    one = subject(CausalLM(), tokenizers["pieces"])
    torch.nn.init.zeros_(one.model.head.get_parameter("weight"))
    found = at_most(windows(documents, 128), 20)
    measured = suffix(likelihood_of(one), one.tokenizer, found)
    assert measured.value == pytest.approx(measured.chance)
    n_tokens = sum(len(ask.continuation) for ask in asks(found, one.tokenizer, ends=True))
    n_bytes = sum(len(window.asked.encode()) for window in found)
    assert measured.value == pytest.approx(n_tokens * math.log2(one.tokenizer.vocab_size) / n_bytes)
    assert measured.items is not None and set(measured.items.group) == {w.file for w in found}


def test_cloze_is_at_chance_where_nothing_is_known_and_perfect_where_all_is(tokenizers, documents):
    tokenizer = tokenizers["bytes"]
    items = cloze_items(documents, documents, most=30, n_candidates=20, context_bytes=128)
    accuracy, mrr = cloze(Uniform(tokenizer.vocab_size), tokenizer, items)
    assert accuracy.value == pytest.approx(1 / 20) == accuracy.chance
    assert mrr.value == pytest.approx(sum(1 / r for r in range(1, 21)) / 20) == mrr.chance
    true = [
        Ask(
            (*((BOS,) if item.begins else ()), *tokenizer.encode(item.given).tolist()),
            tuple(tokenizer.encode(item.candidates[0]).tolist()),
        )
        for item in items
    ]
    assert [one.value for one in cloze(Knows(true), tokenizer, items)] == [1.0, 1.0]


def test_tied_candidates_share_their_ranks():
    nats = np.array([1.0, 1.0, 0.5, 2.0])
    assert best(nats) == 0 and reciprocal_rank(nats) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert best(nats[[0, 1, 3]]) == 0.5 and best(nats[[0, 3]]) == 1


PAIRS = [
    Pair(f"{a} {b} cat.", f"{b} {a} cat.", f"paradigm{i % 2}")
    for i, (a, b) in enumerate([("the", "big")] * 30)
]
PAIRS += [Pair("It is so.", "It is so and so.", "longer")] * 20


def test_minimal_pairs_of_equal_length_are_at_chance_under_a_uniform_model(tokenizers):
    tokenizer = tokenizers["bytes"]
    found = {m.yardstick: m for m in minimal_pairs(by_likelihood(Uniform(300)), tokenizer, PAIRS)}
    assert found["minimal_pairs_equal_length"].value == 0.5 and found["minimal_pairs_equal_length"].n == 30
    assert found["minimal_pairs/longer"].value == 1.0  # it counts tokens
    assert found["minimal_pairs"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    for name in ("minimal_pairs_equal_length", "minimal_pairs/paradigm0"):
        assert LIKE_CHANCE in found[name].note
    assert LIKE_CHANCE not in found["minimal_pairs/longer"].note


def test_a_pair_turned_round_is_won_by_the_other(tokenizers):
    one = subject(CausalLM(), tokenizers["pieces"])
    scores = by_likelihood(likelihood_of(one))
    turned = [Pair(pair.bad, pair.good, pair.paradigm) for pair in PAIRS]
    there, back = (minimal_pairs(scores, one.tokenizer, pairs) for pairs in (PAIRS, turned))
    for a, b in zip(there, back, strict=True):
        assert a.value == pytest.approx(1 - b.value)


def test_the_interval_of_a_share_is_wilsons():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 20)[1] == 1.0 and wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert over_groups([0.5]) is None
    assert over_groups([0.4, 0.6]) == pytest.approx((0.5 - 1.2706, 0.5 + 1.2706), abs=1e-3)


def test_the_right_choice_is_found_wherever_it_stands(tokenizers):
    tokenizer = tokenizers["bytes"]
    questions = [Question("How many?", ("one", "two", "six"), label) for label in (0, 1, 2)]
    uniform, _ = choice(Uniform(300), tokenizer, questions)
    assert uniform.value == pytest.approx(1 / 3) == uniform.chance
    known = [
        Ask((BOS, *tokenizer.encode(q.text).tolist()), tuple(tokenizer.encode(f" {q.choices[1]}").tolist()))
        for q in questions
    ]
    accuracy, _ = choice(Knows(known), tokenizer, questions)
    assert accuracy.items is not None and accuracy.items.value.tolist() == [0, 1, 0]


def test_perplexity_scores_every_token_once_whatever_the_stride(tokenizers, documents):
    ids = tuple(range(100))
    for stride in (1, 7, 64, 200):
        parts = stretches(ids, stride=stride, seq_len=32)
        assert tuple(token for part in parts for token in part.continuation) == ids[1:]
        for part in parts:
            assert part.context == tuple(range(part.continuation[0]))[-32:]


def test_perplexity_and_bits_per_byte_are_of_the_same_nats(tokenizers, documents):
    one = subject(CausalLM(), tokenizers["pieces"])
    ppl, bits = perplexity(likelihood_of(one), one.tokenizer, documents, stride=32, seq_len=128)
    n_bytes = sum(len(d.text.encode()) for d in documents)
    n_tokens = sum(len(one.tokenizer.encode(d.text)) + 1 for d in documents)
    assert ppl.n == n_tokens
    assert math.log(ppl.value) * n_tokens == pytest.approx(bits.value * n_bytes * math.log(2))
    uniform, _ = perplexity(Uniform(321), one.tokenizer, documents, stride=32, seq_len=128)
    assert uniform.value == pytest.approx(321)


def test_no_model_of_single_tokens_beats_the_entropy_of_their_own_frequencies(tokenizers, documents):
    tokenizer = tokenizers["pieces"]
    assert entropy(np.array([1, 1, 2, 2])) == pytest.approx(math.log(2))
    own = order0(tokenizer, documents)["unigram"][0].value
    other, _ = perplexity(
        unigram(tokenizer, [d.text for d in documents]), tokenizer, documents, stride=64, seq_len=128
    )
    assert own < other.value < 1.1 * own


def test_a_token_is_masked_with_the_rest_of_its_word_and_nothing_before(tokenizers):
    """Nats change with a token of another word, or with one before; not with those after in the same word."""
    one = subject(MaskedLM(), tokenizers["pieces"])
    starts = begins_word(one.tokenizer)
    word = np.flatnonzero(starts & (one.tokenizer.vocab().n_bytes > 1))[:2]
    inner = np.flatnonzero(~starts & (one.tokenizer.vocab().n_bytes > 0))[:4]
    text = np.array([word[0], inner[0], inner[1], word[1], inner[2]])

    def nats(ids: np.ndarray) -> np.ndarray:
        return pseudo_nats(one, [((BOS,), ids)])[0]

    base = nats(text)
    for i in range(len(text)):
        changed = text.copy()
        changed[i] = inner[3]
        differs = np.abs(nats(changed) - base) > 1e-7
        word_of = np.array([0, 0, 0, 1, 1])
        if i in (0, 3):
            continue  # it would be no word's beginning any more
        hidden = (word_of == word_of[i]) & (np.arange(5) < i)
        assert not differs[hidden].any() and differs[~hidden].all()


@pytest.mark.parametrize("objective", [CausalLM(), MaskedLM()], ids=["clm", "mlm"])
def test_the_same_model_gives_the_same_numbers(tokenizers, documents, objective):
    one = subject(objective, tokenizers["pieces"])
    texts = HeldOutTexts(documents[:2], documents[2:4], documents[4:])
    few = Generation(windows=6, pseudo_windows=2, cloze_items=4, cloze_candidates=20)
    first, second = (generation_yardsticks(one, generation_tasks(texts, few)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a._replace(items=None) == b._replace(items=None)
        assert a.items is not None and b.items is not None
        np.testing.assert_array_equal(a.items.value, b.items.value)
    names = {m.yardstick for m in first}
    assert names == {"suffix_bits_per_byte", "cloze"} | ({"pseudo_likelihood"} if objective.fills else set())
    for name, baseline in generation_baselines(one.tokenizer, generation_tasks(texts, few)).items():
        assert name in {"length", "unigram"}
        for m in baseline:
            (own,) = (a for a in first if (a.yardstick, a.metric) == (m.yardstick, m.metric))
            assert isinstance(own.items, Items) and isinstance(m.items, Items) and own.items.id == m.items.id


def test_a_contrastive_model_has_no_yardsticks_of_generation(tokenizers, documents):
    one = subject(Contrastive(), tokenizers["pieces"])
    tasks = generation_tasks(HeldOutTexts((), (), documents), Generation(cloze_candidates=20))
    assert generation_yardsticks(one, tasks) == []


def test_items_that_stand_in_the_training_text_are_dropped_and_counted(tokenizers, documents):
    texts = HeldOutTexts(documents[:2], documents[2:4], documents[4:])
    settings = Generation(windows=10_000, cloze_items=10_000, cloze_candidates=20)
    copied = documents[5]
    free, kept = (generation_tasks(texts, settings, training) for training in (None, [copied.text]))
    assert free.overlap == {} and {w.file for w in free.windows} == {d.file for d in texts.test}
    assert {w.file for w in kept.windows} == {d.file for d in texts.test if d != copied}
    assert all(item.file != copied.file for item in kept.endings)
    dropped, n = kept.overlap["suffix"]
    assert n == len(free.windows) and dropped == n - len(kept.windows)
    assert dropped >= sum(w.file == copied.file for w in free.windows) > 0  # other files repeat some of it
    assert (
        f"{dropped} of {n} items dropped" in generation_baselines(tokenizers["bytes"], kept)["length"][0].note
    )
    with pytest.raises(DataError, match="every item of suffix"):
        generation_tasks(texts, settings, [d.text for d in documents])


EVAL = SHARED / "eval"
real = pytest.mark.skipif(not EVAL.is_dir(), reason="the shared evaluation sets are not here")


@real
@pytest.mark.parametrize(("name", "paradigms", "n"), [("blimp", 67, 10), ("jblimp", 39, 331)])
def test_real_minimal_pairs_are_at_chance_for_a_uniform_model(tokenizers, name, paradigms, n):
    pairs = read_pairs(Path(EVAL / f"{name}.jsonl.xz"), 10)
    found = minimal_pairs(by_likelihood(Uniform(300)), tokenizers["bytes"], pairs)
    whole, equal, *each = found
    assert len(each) == len({pair.paradigm for pair in pairs}) and whole.n == len(pairs)
    assert equal.value == 0.5


@real
def test_real_questions_are_at_chance_for_a_model_that_knows_nothing(tokenizers):
    questions = read_questions(EVAL / "jcommonsenseqa_valid.jsonl.xz")
    assert len(questions) == 1119
    one = subject(CausalLM(), tokenizers["bytes"], seq_len=256)
    accuracy, by_byte = choice(likelihood_of(one), one.tokenizer, questions[:60])
    for measured in (accuracy, by_byte):
        assert measured.interval is not None and measured.chance == pytest.approx(0.2)
