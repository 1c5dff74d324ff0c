"""Bytes as tokens: no training, no unknowns, one id a byte of UTF-8."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llmtrain.config import config
from llmtrain.data.tokenizers.base import Tokenizer, TokenizerConfig, save_tokenizer


@config
class Bytes(TokenizerConfig):
    def build(self, texts: Callable[[], Iterator[str]], folder: Path) -> Tokenizer:
        return save_tokenizer(folder, "bytes", n_reserved=self.n_reserved, content=b"", options={})


class ByteTokenizer(Tokenizer):
    """Id ``n_reserved + b`` is byte b."""

    def __init__(self, content: bytes, *, n_reserved: int, content_hash: str) -> None:
        assert not content, "bytes need no file"
        super().__init__(n_reserved, content_hash)

    @property
    def vocab_size(self) -> int:
        return self.n_reserved + 256

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.n_reserved for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return bytes(i - self.n_reserved for i in ids).decode(errors="replace")

    def surfaces(self) -> list[bytes]:
        return [bytes([b]) for b in range(256)]
