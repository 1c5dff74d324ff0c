"""Tokenizers as tests build them: of this project's own code, unless they are given texts."""

from collections.abc import Iterator
from pathlib import Path

from llmtrain.data.tokenizers.base import Tokenizer, TokenizerConfig

REPO = Path(__file__).resolve().parents[1]


def code() -> Iterator[str]:
    for file in sorted((REPO / "llmtrain").rglob("*.py")):
        yield file.read_text()
    yield "\n".join(f"\tif x == {i}:\n\t\ty = {i} - x\n" for i in range(300))


def build(config: TokenizerConfig, folder: Path, texts: list[str] | None = None) -> Tokenizer:
    folder.mkdir(parents=True)
    return config.build(lambda: iter(texts) if texts is not None else code(), folder)
