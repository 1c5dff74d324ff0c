"""Tokenizers lose nothing, count bytes exactly, and make reserved ids of no text."""

import json
import lzma
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.tokenizers.base import Tokenizer, TokenizerConfig, load_tokenizer, reserved_names
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.escape import escape, unescape
from llmtrain.data.tokenizers.huggingface import HuggingFace
from llmtrain.data.tokenizers.sentencepiece import SentencePiece, SentencePieceModel
from llmtrain.data.tokenizers.vocab import load_vocab, save_vocab
from llmtrain.errors import DataError
from llmtrain.types import BOS, MASK, N_FIXED
from tokenizing import REPO, build, code

CORPORA = REPO.parent / "shared" / "corpora"

HARD = [
    "def f(x):\n    return {'a': x ** 2}  # squared\n\n\nclass A:\n\tpass\n",
    "\t\tdeep\ttabs \t mixed\t",
    "  leading,   runs     of spaces and trailing   ",
    "\r\nCRLF\r\n\rCR\r",
    "日本語の文章。　全角スペースと「鉤括弧」、そして漢字。\n\n改行。",
    "emoji 🎉 👨‍👩‍👧‍👦 🇯🇵 e\u0301 ﬁ ½ Ａ",
    "<pad><bos><mask><unk><s></s><extra_0><mode_1><0x41> <|endoftext|> [MASK]",
    "a literal ▁ and ▁▁ and x▁y, a ▅, a \0 and \ufeff \u2028 \u0085 \ufffd",
    "\U0010fe00\U0010fe01 \U0010fe02\U0010fe03 \U0010fe000 \ue000 \U0010ffff",
    " ",
    "\n",
    "▁",
    "",
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return build(SentencePiece(vocab_size=1500), tmp_path_factory.mktemp("bpe") / "t")


def hugging_face(folder: Path, kind: str) -> Path:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Model

    if kind == "byte level":
        model = Model(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        model = Model(models.BPE(byte_fallback=True, unk_token="<unk>"))
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        model.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()]
        )
        alphabet = []
    byte_pieces = [f"<0x{b:02X}>" for b in range(256)] if kind == "metaspace" else []
    special = [AddedToken(t, special=True) for t in ("<unk>", "<|endoftext|>", "[MASK]", "<bos>")]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=alphabet,
        special_tokens=[*special, *byte_pieces],
        show_progress=False,
    )
    model.train_from_iterator(code(), trainer)
    spec = json.loads(model.to_str())
    # the trainer makes special tokens of the byte pieces; a model that was converted has them as pieces only
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in byte_pieces]
    file = folder / f"{kind.replace(' ', '_')}.json"
    file.write_text(json.dumps(spec))
    return file


@pytest.fixture(scope="module", params=["bpe", "unigram", "digits", "bytes", "byte level", "metaspace"])
def lossless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Every tokenizer that promises to lose nothing."""
    folder = tmp_path_factory.mktemp("lossless")
    match request.param:
        case "bpe" | "unigram":
            config: TokenizerConfig = SentencePiece(
                vocab_size=1500, model_type=request.param, max_training_bytes=200_000
            )
        case "digits":
            config = SentencePiece(vocab_size=1500, n_sentinels=0, split_digits=True)
        case "bytes":
            config = Bytes()
        case kind:
            config = HuggingFace(file=str(hugging_face(folder, kind)), n_sentinels=8)
    return build(config, folder / "tokenizer")


def texts_for(tokenizer: Tokenizer) -> list[str]:
    # a literal U+2581 is a space to the metaspace scheme: the file's own property, not ours
    keep = "▁" if "Metaspace" in json.dumps(getattr(tokenizer, "_spec", {})) else None
    return [text for text in [*HARD, *code()] if keep is None or keep not in text]


def test_decoding_what_was_encoded_gives_the_text_back(lossless: Tokenizer) -> None:
    texts = texts_for(lossless)
    assert [lossless.decode(ids) for ids in lossless.encode_batch(texts)] == texts


def test_no_text_becomes_a_reserved_id_even_if_it_spells_one(lossless: Tokenizer) -> None:
    texts = [*texts_for(lossless), "".join(reserved_names(lossless.n_reserved)), "<|endoftext|>[MASK]<bos>"]
    surfaces = lossless.surfaces()
    for ids in lossless.encode_batch(texts):
        assert ids.dtype == np.int32
        assert np.all((ids >= lossless.n_reserved) & (ids < lossless.vocab_size))
        assert all(surfaces[i - lossless.n_reserved] for i in ids)  # nor a special token of the file's own


def test_the_bytes_of_the_tokens_sum_to_the_bytes_of_the_text(lossless: Tokenizer) -> None:
    vocab = lossless.vocab()
    assert vocab.size == lossless.vocab_size == len(vocab.n_bytes)
    assert not vocab.n_bytes[: vocab.n_reserved].any()
    for text in texts_for(lossless):
        assert vocab.n_bytes[lossless.encode(text)].sum() == len(text.encode())


def test_a_batch_gives_the_ids_of_its_texts_one_by_one(lossless: Tokenizer) -> None:
    texts = texts_for(lossless)
    for text, ids in zip(texts, lossless.encode_batch(texts), strict=True):
        assert np.array_equal(ids, lossless.encode(text))
    assert lossless.encode_batch([]) == []


def test_building_twice_gives_one_tokenizer_which_loads_as_it_was_built(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    build(SentencePiece(vocab_size=1500), tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.hash == bpe.hash
    assert np.array_equal(again.encode("a text"), bpe.encode("a text"))


def test_the_hash_covers_the_number_of_sentinels(tmp_path: Path) -> None:
    assert build(Bytes(), tmp_path / "a").hash != build(Bytes(n_sentinels=0), tmp_path / "b").hash


def test_cutting_long_texts_at_spaces_changes_no_id(bpe: Tokenizer) -> None:
    text = escape("\n".join(code()) + " a  b   c " * 500)
    whole = bpe._model.encode([text], out_type=int)[0]  # type: ignore[attr-defined]
    assert bpe.encode(unescape(text)).tolist() == whole


def test_the_escape_is_reversible() -> None:
    for text in HARD:
        assert unescape(escape(text)) == text
        assert not {"\t", "▁", "▅"} & set(escape(text))


def test_runs_of_newlines_tabs_and_spaces_are_pieces(bpe: Tokenizer) -> None:
    surfaces = bpe.surfaces()
    assert {b"\n\n", b"\t\t", b" " * 4, b" " * 8} <= set(surfaces)


def test_reserved_ids_are_dropped_or_shown_by_name(bpe: Tokenizer) -> None:
    ids = [BOS, *bpe.encode("one").tolist(), MASK, N_FIXED, *bpe.encode(" two").tolist()]
    assert bpe.decode(ids) == "one two"
    assert bpe.decode(ids, show_reserved=True) == "<bos>one<mask><extra_0> two"
    assert len(set(reserved_names(bpe.n_reserved))) == bpe.n_reserved
    with pytest.raises(DataError, match="vocabulary of 1500"):
        bpe.decode([1500])


def test_a_vocabulary_file_comes_back_equal_and_holds_no_objects(bpe: Tokenizer, tmp_path: Path) -> None:
    save_vocab(tmp_path / "a.npz", bpe.vocab())
    save_vocab(tmp_path / "b.npz", bpe.vocab())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for saved, given in zip(load_vocab(tmp_path / "a.npz"), bpe.vocab(), strict=True):
        assert np.array_equal(saved, given)
    np.savez(tmp_path / "bad.npz", n_bytes=np.array([object()], dtype=object))
    with pytest.raises(DataError, match=r"bad\.npz"):
        load_vocab(tmp_path / "bad.npz")


def test_an_existing_model_keeps_its_ids_behind_the_reserved_ones(bpe: Tokenizer, tmp_path: Path) -> None:
    import sentencepiece

    file = tmp_path / "foreign.model"
    with file.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=code(), model_writer=stream, vocab_size=1000, byte_fallback=True, minloglevel=3
        )
    foreign = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = build(SentencePieceModel(file=str(file)), tmp_path / "t")
    ids = foreign.encode("for x in range(10): <s> print(x)")
    assert tokenizer.encode("for x in range(10): <s> print(x)").tolist() == [
        i + tokenizer.n_reserved for i in ids
    ]
    assert tokenizer.vocab_size == tokenizer.n_reserved + 1000
    assert tokenizer.decode(tokenizer.encode("日本 x")) == "日本 x"
    controls = [tokenizer.n_reserved + foreign.piece_to_id(piece) for piece in ("<s>", "</s>", "<unk>")]
    assert not tokenizer.vocab().n_bytes[controls].any()


def test_identity_follows_a_file_by_content_and_every_field(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("same")
    a, b = (HuggingFace(file=str(tmp_path / name)).identity() for name in "ab")
    assert a == b
    (tmp_path / "b").write_text("other")
    assert HuggingFace(file=str(tmp_path / "b")).identity() != a
    assert SentencePiece().identity() != SentencePiece(split_digits=True).identity()
    assert json.loads(json.dumps(SentencePiece().identity())) == SentencePiece().identity()


def test_bad_input_is_refused_in_one_line(bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    cases = [
        (SentencePiece(), [], "no text"),
        (SentencePiece(), ["a \ud800 b"], r"U\+D800"),
        (SentencePieceModel(file=str(tmp_path / "none.model")), [], "none.model cannot be read"),
        (SentencePieceModel(file=str(tmp_path / "junk")), [], "junk is no SentencePiece model"),
        (HuggingFace(file=str(tmp_path / "junk")), [], "junk is no tokenizer.json"),
    ]
    for number, (config, texts, message) in enumerate(cases):
        with pytest.raises(DataError, match=message) as refused:
            build(config, tmp_path / str(number), texts)
        assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=r"character 2 .* U\+DC00"):
        bpe.encode("ab\udc00")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("corpus", ["aozora_ja", "books_en"])
def test_real_text_comes_back_whole(corpus: str, model_type: str, tmp_path: Path) -> None:
    file = CORPORA / f"{corpus}.jsonl.xz"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    with lzma.open(file, "rt") as stream:
        texts = [json.loads(line)["text"][:40_000] for line in islice(stream, 12)]
    tokenizer = build(
        SentencePiece(vocab_size=6000, model_type=model_type, max_training_bytes=300_000),
        tmp_path / "t",
        texts,
    )
    n_bytes = tokenizer.vocab().n_bytes
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert n_bytes[ids].sum() == len(text.encode())
