"""Which tokens are masked: how many, whole words and spans of them, none that is special, all alike."""

from itertools import groupby

import numpy as np
import pytest

from llmtrain import philox
from llmtrain.data.tokenizers.vocab import tabulate
from llmtrain.objectives.masking import Shares, Units, choose, corrupt, units_of
from llmtrain.types import BOS, MASK, NO_DOC, PAD, UNK, Row
from tests.tiny import N_RESERVED, VOCAB

# every third word of the vocabulary begins one, the others go on with it
SPACED = VOCAB._replace(starts_word=(np.arange(VOCAB.size) % 3 == 0) & (np.arange(VOCAB.size) >= N_RESERVED))
kinds = pytest.mark.parametrize(
    ("unit", "span"), [("token", 1.0), ("token", 3.0), ("word", 1.0), ("word", 3.8)]
)


def packed(length: int, seed: int, *, padding: int = 0) -> Row:
    """Documents of uniform words, each after its BOS but the first, which began in an earlier row."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(N_RESERVED, VOCAB.size, length)
    ids[rng.random(length) < 0.05], ids[rng.random(length) < 0.02] = BOS, UNK
    doc = np.cumsum(ids == BOS)
    end = length - padding
    ids[end:], doc[end:] = PAD, NO_DOC
    return Row(ids, doc)


def chosen(row: Row, n: int, unit: str, span: float, seed: int = 0) -> np.ndarray:
    return choose(units_of(row, SPACED, unit), n, span=span, rng=np.random.default_rng(seed))


def spans_of(at: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring places."""
    return [[int(p) for _, p in run] for _, run in groupby(enumerate(at), key=lambda pair: pair[1] - pair[0])]


def whole_units(units: Units) -> list[set[int]]:
    return [set(part.tolist()) for part in np.split(units.tokens, units.bounds[1:-1])]


@kinds
@pytest.mark.parametrize("padding", [0, 40, 63])
def test_exactly_so_many_tokens_are_chosen_and_never_a_special_one(unit, span, padding):
    for seed in range(30):
        row = packed(64, seed, padding=padding)
        real = int((row.ids >= N_RESERVED).sum())
        for n in (1, 7, 19, 64):
            at = chosen(row, n, unit, span, seed)
            assert len(set(at.tolist())) == len(at) == min(n, real)
            assert (np.diff(at) > 0).all()
            assert (row.ids[at] >= N_RESERVED).all() and (row.doc[at] != NO_DOC).all()


@pytest.mark.parametrize("span", [1.0, 3.8])
def test_words_are_chosen_whole_but_for_one_of_which_the_first_tokens_are(span):
    cut = 0
    for seed in range(60):
        row = packed(96, seed)
        at = set(chosen(row, 29, "word", span, seed).tolist())
        partly = [
            word for word in whole_units(units_of(row, SPACED, "word")) if 0 < len(word & at) < len(word)
        ]
        cut += len(partly)
        assert len(partly) <= 1
        assert all(at & word == set(sorted(word)[: len(at & word)]) for word in partly)
    assert 0 < cut < 60


def test_a_word_goes_on_until_the_next_begins_and_never_beyond_a_document_or_a_special_token():
    #    begins with:  -    33   -    -      33   -    -      -    -     -
    ids = np.array([BOS, 33, 34, 35, UNK, 35, 36, 37, BOS, 38, 40, PAD, PAD])
    doc = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, NO_DOC, NO_DOC])
    units = units_of(Row(ids, doc), SPACED, "word")
    assert whole_units(units) == [{1, 2, 3}, {5}, {6, 7}, {9, 10}]
    assert units.stretch.tolist() == [1, 3, 3, 4]  # of units: {5} and {6, 7} may be one span, no others
    assert len(units_of(Row(ids, doc), SPACED, "token").stretch) == 8


def test_documents_without_a_separator_are_told_by_their_numbers():
    row = Row(np.array([34, 35, 37, 38]), np.array([0, 0, 1, 1]))
    assert whole_units(units_of(row, SPACED, "word")) == [{0, 1}, {2, 3}]
    assert units_of(row, SPACED, "word").stretch.tolist() == [1, 2]


def words_of(*surfaces: str | bytes) -> list[str]:
    """The words of tokens that follow one another, of a vocabulary of these."""
    raw = [one if isinstance(one, bytes) else one.encode() for one in surfaces]
    vocab = tabulate(N_RESERVED, [*raw, "ん".encode()])  # with kana, as in any Japanese one
    units = units_of(Row(N_RESERVED + np.arange(len(raw)), np.zeros(len(raw), int)), vocab, "word")
    parts = np.split(units.tokens, units.bounds[1:-1])
    return [b"".join(raw[i] for i in part).decode() for part in parts]


@pytest.mark.parametrize(
    "words",
    [
        "吾輩は|猫である|。|名前はまだ|無い|。",
        "「|コーヒー|を|飲む|」|と|言った|！",  # the long-vowel mark is katakana
        "人々は|佐々木|ジョン|・|スミス|と|、|〇〇を|見る|。",  # repeats are kanji, the middle dot stands between words
        "第|3|章|Ver2|を|ＡＩ|で|読む",  # digits and letters go on with each other, wide ones too
        " the| cat_1|です",
        "ﾊﾝｶｸ|と| |(yes|、no",  # spaced text is as without Japanese: a letter goes on with a mark
    ],
)
def test_japanese_words_begin_where_the_script_changes(words):
    assert words_of(*words.replace("|", "")) == words.split("|")


def test_a_token_of_several_scripts_is_joined_by_its_ends():
    assert words_of("吾", "輩は猫", "である", "。名", "前は", "コー", "ヒー豆", "を") == [
        "吾輩は猫である",
        "。名前は",
        "コーヒー豆を",
    ]


def test_bytes_of_a_character_belong_to_what_stands_on_either_side():
    first, second, third = (bytes([b]) for b in "鱻".encode())
    assert words_of("の", first, second, third, "る", "猫") == ["の鱻る", "猫"]
    assert words_of("猫", first, second, third, "。", "猫") == ["猫鱻", "。", "猫"]


def test_japanese_words_too_end_with_a_document_and_at_a_special_token():
    vocab = tabulate(N_RESERVED, ["猫".encode(), "は".encode()])
    cat, is_ = N_RESERVED, N_RESERVED + 1
    ids = np.array([BOS, cat, is_, UNK, is_, is_, cat, is_, PAD])
    doc = np.array([0, 0, 0, 0, 0, 1, 1, 1, NO_DOC])
    assert whole_units(units_of(Row(ids, doc), vocab, "word")) == [{1, 2}, {4}, {5}, {6, 7}]


@kinds
def test_a_row_without_text_has_no_japanese_words(unit, span):
    vocab = tabulate(N_RESERVED, ["の".encode()])
    units = units_of(Row(np.array([BOS, PAD]), np.array([0, NO_DOC])), vocab, unit)
    assert choose(units, 2, span=span, rng=np.random.default_rng(0)).tolist() == []


def test_a_vocabulary_without_kana_has_the_words_of_before():
    surfaces = [s.encode() for s in (" the", "se", "(", "a", "猫", "。", "7", "\n", "_x", "жук")] + [b"\xe3"]
    vocab = tabulate(N_RESERVED, surfaces)
    assert vocab.scripts is None
    with_kana = tabulate(
        N_RESERVED, [*surfaces[:4], *surfaces[5:], "カ".encode()]
    )  # none of Japanese in the row
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(N_RESERVED, with_kana.size - 1, 50)
        row = Row(ids, np.arange(50) // 20)
        bare = with_kana._replace(scripts=None)
        for a, b in zip(units_of(row, bare, "word"), units_of(row, with_kana, "word"), strict=True):
            assert (a == b).all()


@pytest.mark.parametrize("span", [1.0, 2.0, 3.8])
def test_spans_have_the_mean_length_that_is_asked_for(span):
    row = Row(np.full(20_000, 40), np.zeros(20_000, int))
    lengths = [len(run) for seed in range(20) for run in spans_of(chosen(row, 400, "token", span, seed))]
    assert np.mean(lengths) == pytest.approx(span, rel=0.08)  # near ones now and then touch, which adds 2%


def test_every_token_is_chosen_equally_often():
    row, n_draws = packed(64, 3), 1500
    real = np.flatnonzero(row.ids >= N_RESERVED)
    counts = np.zeros(64)
    for seed in range(n_draws):
        counts[chosen(row, 19, "token", 1.0, seed)] += 1
    p = 19 / len(real)
    assert abs(counts[real] - n_draws * p).max() < 5 * np.sqrt(n_draws * p * (1 - p))


@pytest.mark.parametrize("n", [0, 1, 2, 5, 10, 38, 77, 1000])
def test_shares_become_counts_that_add_up(n):
    for shares in (
        Shares(0.8, 0.1),
        Shares(0.5, 0.5),
        Shares(0.0, 1.0),
        Shares(1.0, 0.0),
        Shares(0.45, 0.45),
    ):
        masked, random = shares.counts(n)
        assert 0 <= masked <= masked + random <= n
        assert abs(masked - shares.mask * n) <= 0.5 and abs(random - shares.random * n) <= 1
    assert Shares(0.8, 0.1).counts(100) == (80, 10)


def test_what_stands_in_their_place_is_counted_and_all_else_is_as_it_was():
    random_ids, as_before = set(), 0
    for seed in range(200):
        row = packed(120, seed)
        at = chosen(row, 40, "token", 1.0, seed)
        ids = corrupt(row.ids, at, Shares(0.5, 0.25), VOCAB, np.random.default_rng(seed))
        elsewhere = np.delete(np.arange(120), at)
        assert (ids[elsewhere] == row.ids[elsewhere]).all()
        assert (ids[at] == MASK).sum() == 20
        same, other = ids[at] == row.ids[at], (ids[at] != row.ids[at]) & (ids[at] != MASK)
        as_before += same.sum() - 10
        assert same.sum() >= 10 >= other.sum()
        random_ids |= set(ids[at][other].tolist())
    assert random_ids == set(range(N_RESERVED, VOCAB.size))  # all real tokens, and no others
    expected = 200 * 10 / (VOCAB.size - N_RESERVED)  # random tokens that come out as they were
    assert abs(as_before - expected) < 4 * np.sqrt(expected)


@kinds
def test_the_generator_given_is_the_only_source_of_chance(unit, span):
    row = packed(64, 0)
    before = row.ids.copy(), row.doc.copy()
    draws = []
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        rng = philox.generator(5, "example", 0, 7)
        at = choose(units_of(row, SPACED, unit), 19, span=span, rng=rng)
        draws.append((at.tolist(), corrupt(row.ids, at, Shares(0.8, 0.1), SPACED, rng).tolist()))
    assert draws[0] == draws[1]
    assert draws[0][0] != chosen(row, 19, unit, span, seed=8).tolist()
    assert (row.ids == before[0]).all() and (row.doc == before[1]).all()


@kinds
def test_a_row_without_text_has_nothing_to_choose(unit, span):
    row = Row(np.array([BOS, PAD, PAD]), np.array([0, NO_DOC, NO_DOC]))
    assert chosen(row, 2, unit, span).tolist() == []
