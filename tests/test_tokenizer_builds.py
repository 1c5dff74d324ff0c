"""How a tokenizer is built: of how much text, which vocabularies are refused, and in silence."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.data.tokenizers.base import DESCRIPTOR, load_tokenizer
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.errors import DataError
from tokenizing import REPO, build


def test_only_the_first_bytes_of_the_corpus_train(tmp_path: Path) -> None:
    drawn = []

    def texts() -> Iterator[str]:
        for i in range(1000):
            drawn.append(i)
            yield "the same words and other words again\n" * 100

    (tmp_path / "t").mkdir()
    SentencePiece(vocab_size=560, max_training_bytes=50_000).build(texts, tmp_path / "t")
    assert len(drawn) < 20


@pytest.mark.parametrize(
    "config", [{"vocab_size": 500}, {"vocab_size": 8192, "character_coverage": 0.0}, {"n_sentinels": -1}]
)
def test_impossible_values_are_refused_when_the_config_is_made(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"tokenizer.{list(config)[-1]}"):
        SentencePiece(**config)  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_that_the_text_cannot_fill_is_refused_with_the_largest_that_works(
    model_type: str, tmp_path: Path
) -> None:
    texts = ["hello world, " * 30 + "\n" * 30, "abc def. " * 12]
    with pytest.raises(DataError, match=r"at most \d+") as refused:
        build(SentencePiece(vocab_size=3000, model_type=model_type), tmp_path / "a", texts)
    largest = int(str(refused.value).split("at most ")[1].split(",")[0])
    assert (
        build(SentencePiece(vocab_size=largest, model_type=model_type), tmp_path / "b", texts).vocab_size
        == largest
    )


def test_a_vocabulary_too_small_for_the_characters_is_refused_with_numbers(tmp_path: Path) -> None:
    texts = ["".join(chr(0x4E00 + i) for i in range(1000))]
    with pytest.raises(DataError, match=r"set it to at least (\d+)") as refused:
        build(SentencePiece(vocab_size=600), tmp_path / "a", texts)
    least = int(str(refused.value).split("at least ")[1].split(",")[0])
    assert build(SentencePiece(vocab_size=least), tmp_path / "b", texts).vocab_size == least


def test_an_altered_or_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    build(SentencePiece(vocab_size=700), tmp_path / "t")
    model = tmp_path / "t" / "tokenizer.model"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(DataError, match="hash"):
        load_tokenizer(tmp_path / "t")
    model.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.model: No such file"):
        load_tokenizer(tmp_path / "t")
    (tmp_path / "t" / DESCRIPTOR).write_text('{"format": "other"}')
    model.touch()
    with pytest.raises(DataError, match="does not describe a tokenizer"):
        load_tokenizer(tmp_path / "t")


def test_a_process_that_only_tokenizes_imports_no_torch_and_prints_nothing(tmp_path: Path) -> None:
    build(SentencePiece(vocab_size=700), tmp_path / "t")
    program = (
        "import sys; from pathlib import Path; from llmtrain.data.tokenizers.base import load_tokenizer\n"
        "t = load_tokenizer(Path(sys.argv[1])); assert t.decode(t.encode('a b')) == 'a b'\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t")],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_training_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(SentencePiece(vocab_size=700), tmp_path / "t")
    assert capfd.readouterr() == ("", "")
