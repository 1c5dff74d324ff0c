"""Masked language modelling of real text: what is refused, what is compared, and what a person reads."""

import json
import lzma
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from llmtrain import philox
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.objectives.masked import MaskedLM
from llmtrain.objectives.masking import units_of
from llmtrain.objectives.words import begins_word
from llmtrain.scoring import HeldOut, eval_hash
from llmtrain.types import BOS, IGNORE, MASK, NO_DOC, PAD, Row
from runs import REPO, SHARED
from tests.tiny import DENSE, VOCAB, Uniform, model_of, words

MLM = MaskedLM()
CORPORA = {"english": ("books_en.jsonl.xz", 4096), "japanese": ("aozora_ja.jsonl.xz", 8192)}
SIZE = 300_000  # bytes of each language


class Text(NamedTuple):
    language: str
    texts: list[str]
    tokenizer: Tokenizer

    def rows(self, length: int) -> list[Row]:
        """As the data give them: documents of 700 characters end to end, each after its BOS; the last row is short."""
        pieces = [text[i : i + 700] for text in self.texts for i in range(0, 40_000, 700)]
        ids = np.concatenate([np.append(BOS, part) for part in self.tokenizer.encode_batch(pieces)]).astype(
            int
        )
        ids = ids[: 60 * length + length // 3]
        doc = np.cumsum(ids == BOS)
        short = -len(ids) % length
        ids, doc = np.append(ids, [PAD] * short), np.append(doc, [NO_DOC] * short)
        cut = zip(ids.reshape(-1, length), doc.reshape(-1, length), strict=True)
        return [Row(a, b, i) for i, (a, b) in enumerate(cut)]


@pytest.fixture(scope="module", params=CORPORA)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    name, vocab_size = CORPORA[request.param]
    path = SHARED / "corpora" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    texts, n_bytes = [], 0
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            n_bytes += len(texts[-1].encode())
            if n_bytes > SIZE:
                break
    folder = tmp_path_factory.mktemp(request.param)
    cfg = SentencePiece(vocab_size=vocab_size, n_sentinels=0, max_training_bytes=SIZE)
    return Text(request.param, texts, cfg.build(lambda: iter(texts), folder))


# real text


@pytest.mark.parametrize("mlm", [MLM, MaskedLM(span=3.0), MaskedLM(rate=0.15, unit="word", span=2.0)])
def test_rows_of_real_text_are_masked_by_the_numbers(real, mlm):
    vocab, rows = real.tokenizer.vocab(), real.rows(128)
    n = round(mlm.rate * 128)
    for row in rows:
        rng = philox.generator(0, "example", 0, row.number)
        text, at, targets, _ = mlm.example(row, vocab, seq_len=128, rng=rng)
        at, targets = at[targets != IGNORE], targets[targets != IGNORE]
        assert len(at) == min(n, (row.ids >= vocab.n_reserved).sum())
        assert (text.ids[at] == MASK).sum() == round(0.8 * len(at))
        assert ((text.ids[at] != MASK) & (text.ids[at] != targets)).sum() <= round(0.9 * len(at)) - round(
            0.8 * len(at)
        )
        assert (text.ids[at][text.ids[at] != MASK] >= vocab.n_reserved).all()
        restored = text.ids.copy()
        restored[at] = targets
        assert (restored == row.ids).all()
    assert (rows[-1].doc == NO_DOC).any() and any((row.ids[1:] == BOS).any() for row in rows)


def words_in(ids: np.ndarray, text: Text) -> list[str]:
    units = units_of(Row(ids, np.zeros(len(ids), int)), text.tokenizer.vocab(), "word")
    return [text.tokenizer.decode(ids[part]) for part in np.split(units.tokens, units.bounds[1:-1])]


def test_whole_words_are_masked(real):
    mlm, vocab = MaskedLM(unit="word"), real.tokenizer.vocab()
    MLM.check_vocab(vocab, 128)
    mlm.check_vocab(vocab, 128)
    assert (vocab.scripts is not None) == (real.language == "japanese")
    n_partly = 0
    for row in real.rows(128):
        at = mlm.example(row, vocab, seq_len=128, rng=philox.generator(0, "example", 0, row.number)).at
        begins = np.append(True, begins_word(row.ids, vocab)[1:] | (row.ids[:-1] < vocab.n_reserved))
        words = np.split(np.arange(128), np.flatnonzero(begins | (row.ids < vocab.n_reserved))[1:])
        scored = [np.isin(word, at) for word in words]
        partly = [one for one in scored if 0 < one.sum() < len(one)]
        n_partly += len(partly)
        assert len(partly) <= 1  # the last word, of which the first tokens are hidden
        assert all(one[: one.sum()].all() for one in partly)
    assert n_partly < len(real.rows(128))


@pytest.mark.parametrize("real", ["japanese"], indirect=True)
def test_japanese_words_are_told_by_changes_of_script(real):
    sentence = "吾輩は猫である。名前はまだ無い。"
    found = words_in(real.tokenizer.encode(sentence), real)
    print("|".join(found))
    assert "".join(found) == sentence
    assert found == ["吾輩は", "猫である", "。", "名前はまだ", "無い", "。"]
    row = real.rows(512)[1]
    found = words_in(row.ids, real)
    print("|".join(found))
    lengths = np.array([len(word) for word in found])  # in characters; children's tales have much hiragana
    assert 3 < lengths.mean() < 6 and (lengths > 12).mean() < 0.15


THAI = (
    *("ผม", "ฉัน", "เขา", "แมว", "หมา", "บ้าน", "กิน", "ข้าว", "น้ำ", "ไป", "มา", "ที่", "ใน", "และ", "กับ", "เป็น"),
    *("มี", "ไม่", "ได้", "จะ", "ของ", "วัน", "เดือน", "คน", "เมือง", "ไทย", "สวย", "โรงเรียน", "หนังสือ"),
)


def test_words_are_refused_where_neither_spaces_nor_scripts_tell_them(tmp_path):
    """Thai of random words, and kanji of random sentences, with a word in kana now and then."""
    rng = np.random.default_rng(0)
    thai = [" ".join("".join(rng.choice(THAI, 9)) for _ in range(400))]
    words = ["".join(map(chr, rng.integers(0x4E00, 0x4E60, rng.integers(1, 4)))) for _ in range(300)]
    chinese = ["。".join("".join(rng.choice([*words, "ひらがな"], 9)) for _ in range(2000))]
    for name, texts, size in (("thai", thai, 400), ("chinese", chinese, 800)):
        (tmp_path / name).mkdir()
        cfg = SentencePiece(vocab_size=size, n_sentinels=0)
        vocab = cfg.build(lambda texts=texts: iter(texts), tmp_path / name).vocab()
        assert (vocab.scripts is not None) == (name == "chinese")
        with pytest.raises(
            ValueError, match=r"unit=word .* only [\d]+% .* Chinese and Thai .* objective.unit=token"
        ):
            MaskedLM(unit="word").check_vocab(vocab, 128)


def test_words_are_refused_where_tokens_are_bytes(tmp_path):
    vocab = Bytes(n_sentinels=0).build(lambda: iter(()), tmp_path).vocab()
    with pytest.raises(ValueError, match="only 0%"):
        MaskedLM(unit="word").check_vocab(vocab, 128)


def test_words_are_told_in_python(tmp_path):
    texts = [path.read_text(encoding="utf-8") for path in sorted((REPO / "llmtrain").rglob("*.py"))]
    vocab = SentencePiece(vocab_size=1024, n_sentinels=0).build(lambda: iter(texts), tmp_path).vocab()
    MaskedLM(unit="word").check_vocab(vocab, 128)


# what a person reads


def test_a_sample_shows_its_places_and_what_was_there(real):
    vocab, row, decode = real.tokenizer.vocab(), real.rows(128)[3], real.tokenizer.decode
    model = MLM.build(DENSE["plain"], vocab.size).eval()
    found = [MLM.samples(model, [row], vocab, decode, seq_len=128, seed=s) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    given, made = found[0][0]
    lines = made.splitlines()
    assert [int(line[1 : line.index("⟧")]) for line in lines] == list(range(1, 25))
    was = [json.loads(re.match(r'⟦\d+⟧ was (".*?(?<!\\)"); likeliest ".*% *$', line)[1]) for line in lines]
    assert given.endswith(" ...")
    for k, token in enumerate(was, 1):  # the truth, put in the places, gives the text back
        given, n = re.subn(rf"⟦{k}(:[^⟧]*)?⟧", lambda _, token=token: token, given)
        assert n == 1
    assert decode(row.ids.tolist()).startswith(given.removesuffix(" ..."))


def test_a_token_that_is_shown_stands_in_its_place():
    decode = words_of
    mlm = MaskedLM(rate=0.5, mask=0.5, random=0.25)
    row = words(12)
    (sample,) = mlm.samples(model_of(mlm, DENSE["plain"]).eval(), [row], VOCAB, decode, seq_len=12, seed=0)
    batch = mlm.example(row, VOCAB, seq_len=12, rng=philox.generator(0, "samples", 0, 0))
    for k, p in enumerate(batch.at.tolist(), 1):
        shown = "" if batch.text.ids[p] == MASK else ":" + json.dumps(decode([batch.text.ids[p]]))
        assert f"⟦{k}{shown}⟧" in sample.given
    assert sample.given.count("⟦") == len(sample.made.splitlines()) == 6


def words_of(ids: Sequence[int]) -> str:
    return "".join(f" w{i}" for i in ids)


def test_a_row_of_padding_has_no_place_to_show():
    row = Row(np.full(12, PAD), np.full(12, NO_DOC))
    (sample,) = MLM.samples(
        model_of(MLM, DENSE["plain"]).eval(), [row], VOCAB, lambda ids: "", seq_len=12, seed=0
    )
    assert sample == ("", "")


# what is compared


def hashes(mlm: MaskedLM) -> dict[str, str]:
    rows = Uniform(4, 24, seed=0)
    return {
        one.score_name: eval_hash(HeldOut(one, rows, "", "", True), 24, 4)  # type: ignore[arg-type]
        for one in mlm.evaluations()
    }


def test_runs_are_compared_at_fifteen_percent_however_they_were_trained():
    trained = [MLM, MaskedLM(rate=0.4), MaskedLM(unit="word"), MaskedLM(span=3.0, z_loss=1e-4)]
    trained += [MaskedLM(mask=1.0, random=0.0), MaskedLM(rate=0.15), MaskedLM(rate=0.15, z_loss=1e-4)]
    scores = [hashes(mlm) for mlm in trained]
    assert len({next(iter(one.items())) for one in scores}) == 1
    assert [list(one)[1:] for one in scores] == [
        ["mlm30_nats_per_token"],
        ["mlm40_nats_per_token"],
        ["mlm30_word_nats_per_token"],
        ["mlm30_span3_nats_per_token"],
        ["mlm30_mask100_random0_nats_per_token"],
        [],
        [],
    ]
    assert hashes(MLM) == hashes(MaskedLM(z_loss=1e-4))  # which is optimised and not scored


# what is refused


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": 1.0}, "rate must be above 0 and below 1"),
        ({"rate": float("nan")}, "rate"),
        ({"mask": 0.9, "random": 0.2}, r"mask=0.9 and random=0.2 .* at most 1"),
        ({"mask": 0.0, "random": 0.0}, "the model would copy"),
        ({"mask": -0.1}, "must not be negative"),
        ({"span": 0.5}, "span must be at least 1"),
        ({"span": float("inf")}, "span"),
        ({"z_loss": -1.0}, "z_loss must not be negative"),
        ({"unit": "sentence"}, "unit"),
    ],
)
def test_an_impossible_value_is_refused_by_its_name(fields: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        MaskedLM(**fields)


@pytest.mark.parametrize(("rate", "too_short"), [(0.3, 3), (0.05, 10)])
def test_rows_too_short_to_score_a_token_are_refused(rate, too_short):
    mlm = MaskedLM(rate=rate)
    with pytest.raises(ValueError, match=rf"seq_len={too_short} leaves no token to score .* at least"):
        mlm.check(DENSE["plain"], seq_len=too_short, one_document=False)
    at_least = int(re.search(r"at least (\d+)", str(refusal(mlm, too_short)))[1])
    mlm.check(DENSE["plain"], seq_len=at_least, one_document=False)


def refusal(mlm: MaskedLM, seq_len: int) -> ValueError:
    with pytest.raises(ValueError) as found:
        mlm.check(DENSE["plain"], seq_len=seq_len, one_document=False)
    return found.value


def test_the_yaml_is_the_default():
    from llmtrain.compose import run_from

    assert run_from(["experiment=quickstart", "objective=mlm"]).objective == MLM
