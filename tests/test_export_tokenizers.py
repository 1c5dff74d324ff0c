"""Exported tokenizers: the ids and the text of ours, whatever ours is."""

import json
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from llmtrain.data.tokenizers.base import Tokenizer, TokenizerConfig, load_tokenizer, reserved_names
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.huggingface import HuggingFace
from llmtrain.data.tokenizers.sentencepiece import SentencePiece, SentencePieceModel
from llmtrain.errors import ConfigError
from llmtrain.export.tokenizer import TEXTS, check_ids, to_fast

transformers = pytest.importorskip("transformers")

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも暗い所でニャーニャー泣いていた。\n"


def corpus() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    return [(library / name).read_text(encoding="utf-8")[:30_000] for name in ("textwrap.py", "ast.py")] + [
        JAPANESE * 20
    ]


def sentencepiece_file(folder: Path) -> str:
    """A model as others train them: a dummy prefix, NFKC, extra spaces removed."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(corpus()).splitlines()),
        model_prefix=str(folder / "other"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        num_threads=1,
        minloglevel=3,
    )
    return str(folder / "other.model")


def huggingface_file(folder: Path, kind: str = "bpe") -> str:
    made = tokenizers.Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<pad>"]
    trainer = {
        "bpe": lambda: trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
        "unigram": lambda: trainers.UnigramTrainer(
            vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
    }[kind]()
    made.train_from_iterator(corpus(), trainer)
    made.add_tokens(["foo_bar"])
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


KINDS: dict[str, Callable[[Path], TokenizerConfig]] = {
    "bytes": lambda folder: Bytes(n_sentinels=16),
    "bpe": lambda folder: SentencePiece(vocab_size=900, n_sentinels=8),
    "bpe, digits apart": lambda folder: SentencePiece(vocab_size=900, n_sentinels=0, split_digits=True),
    "bpe without bytes": lambda folder: SentencePiece(vocab_size=600, n_sentinels=0, byte_fallback=False),
    "bpe, nfkc": lambda folder: SentencePiece(vocab_size=900, n_sentinels=0, normalization="nfkc"),
    "unigram": lambda folder: SentencePiece(vocab_size=900, n_sentinels=8, model_type="unigram"),
    "sentencepiece file": lambda folder: SentencePieceModel(file=sentencepiece_file(folder), n_sentinels=8),
    "tokenizer.json": lambda folder: HuggingFace(file=huggingface_file(folder), n_sentinels=8),
    "unigram tokenizer.json": lambda folder: HuggingFace(
        file=huggingface_file(folder, "unigram"), n_sentinels=8
    ),
}


def opened(name: str, folder: Path) -> tuple[Tokenizer, object]:
    """Ours, and theirs as it is after it was saved and opened."""
    (folder / "own").mkdir()
    KINDS[name](folder).build(lambda: iter(corpus()), folder / "own")
    fast = to_fast(folder / "own")
    names = {f"{name}_token": fast.id_to_token(i) for i, name in enumerate(("pad", "bos", "mask", "unk"))}
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, clean_up_tokenization_spaces=False, **names
    )
    saved.save_pretrained(folder / "theirs")
    return load_tokenizer(folder / "own"), transformers.AutoTokenizer.from_pretrained(folder / "theirs")


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> tuple[str, Tokenizer, object]:
    return request.param, *opened(request.param, tmp_path_factory.mktemp("tokenizer"))


def test_ids_and_text_are_equal_on_many_kinds_of_text(pair):
    _, ours, theirs = pair
    check_ids(theirs, ours, [*TEXTS, *corpus()])


def test_ids_are_equal_on_text_that_nobody_wrote(pair):
    """Of few characters, so that pieces can be made in many ways."""
    _, ours, theirs = pair
    draw = random.Random(0)
    texts = [
        "".join(draw.choices(alphabet, k=60))
        for alphabet in ("ab ", " \n\t", "aA1_.", "猫犬ー。 ", "=-*")
        for _ in range(60)
    ]
    check_ids(theirs, ours, texts)


def test_what_loses_nothing_here_loses_nothing_there(pair):
    name, ours, theirs = pair
    for text in TEXTS:
        if ours.decode(ours.encode(text)) == text:
            assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
        else:
            assert name in ("bpe without bytes", "bpe, nfkc", "sentencepiece file")


def test_text_that_spells_a_reserved_token_becomes_it_unless_it_is_told_not_to(pair):
    _, ours, theirs = pair
    names = [theirs.convert_ids_to_tokens(i) for i in range(ours.n_reserved)]
    assert [
        a == b or a == f"<reserved_{b[1:]}"
        for a, b in zip(names, reserved_names(ours.n_reserved), strict=True)
    ]
    text = f"a{names[2]}b {names[1]}"
    assert {1, 2} < set(theirs(text, add_special_tokens=False)["input_ids"])
    split = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert split == ours.encode(text).tolist()
    assert min(split) >= ours.n_reserved or 3 in split


@pytest.mark.parametrize("name", ["tokenizer.json", "unigram tokenizer.json"])
def test_special_tokens_of_a_foreign_tokenizer_stay_text(name, tmp_path):
    ours, theirs = opened(name, tmp_path)
    text = "foo_bar<|endoftext|>foo"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    assert theirs.bos_token == "<bos>"
    assert theirs.pad_token == "<reserved_pad>"  # <pad> is a piece of its own


def test_a_tokenizer_that_gives_other_ids_is_refused(pair):
    _, ours, theirs = pair

    class Other:
        backend_tokenizer = theirs.backend_tokenizer

        def __call__(self, text, **kwargs):
            return {"input_ids": [*theirs(text, **kwargs)["input_ids"], 0]}

    with pytest.raises(ConfigError, match="the tokenizer cannot be exported: 'x' would become"):
        check_ids(Other(), ours, ["x"])


def test_pieces_of_a_users_own_are_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(corpus()).splitlines()), model_prefix=str(tmp_path / "m"), vocab_size=500,
        user_defined_symbols=["<sep>"], num_threads=1, minloglevel=3,
    )  # fmt: skip
    (tmp_path / "own").mkdir()
    SentencePieceModel(file=str(tmp_path / "m.model")).build(lambda: iter(()), tmp_path / "own")
    with pytest.raises(ConfigError, match=r"pieces of its user's own \(<sep>\)"):
        to_fast(tmp_path / "own")


def test_the_texts_compared_hold_what_is_hard():
    text = "".join(TEXTS)
    assert all(hard in text for hard in ("\t", "\u2581", "\r\n", "東京", "🙂", "  ", "\U0010fe00"))
    assert json.loads(json.dumps(TEXTS)) == list(TEXTS)
