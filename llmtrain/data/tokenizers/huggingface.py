"""An existing Hugging Face ``tokenizer.json``, shifted past the reserved ids."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmtrain.config import config
from llmtrain.data.tokenizers.base import Tokenizer, TokenizerConfig, read_model_file, save_tokenizer
from llmtrain.errors import DataError


@config
class HuggingFace(TokenizerConfig):
    """A ``tokenizer.json``: its id i becomes id ``n_reserved + i``; what it normalises away stays lost.

    Its special tokens are kept and never used: text that spells one is encoded as ordinary text.
    """

    file: str

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"file": xxhash.xxh3_128_hexdigest(read_model_file(self.file))}

    def build(self, texts: Callable[[], Iterator[str]], folder: Path) -> Tokenizer:
        content = read_model_file(self.file)
        try:
            _open(content)
        except Exception as error:  # the library raises no narrower type
            raise DataError(
                f"tokenizer.file={self.file} is no tokenizer.json ({error}); "
                "a SentencePiece .model goes with tokenizer=sentencepiece_model"
            ) from None
        return save_tokenizer(folder, "huggingface", n_reserved=self.n_reserved, content=content, options={})


class HuggingFaceTokenizer(Tokenizer):
    def __init__(self, content: bytes, *, n_reserved: int, content_hash: str) -> None:
        super().__init__(n_reserved, content_hash)
        self._spec: dict[str, Any] = json.loads(content)
        self._model = _open(content)
        self._size = 1 + max(self._model.get_vocab(with_added_tokens=True).values())  # ids may have holes

    @property
    def vocab_size(self) -> int:
        return self.n_reserved + self._size

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        # one at a time: its batches start threads, which do not survive a fork
        encoded = (self._model.encode(text, add_special_tokens=False).ids for text in texts)
        return [np.array(ids, dtype=np.int32) + self.n_reserved for ids in encoded]

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode([i - self.n_reserved for i in ids], skip_special_tokens=True)

    def surfaces(self) -> list[bytes]:
        """Exact for byte-level models, and for SentencePiece-like ones that add no space of their own."""
        surfaces = [b""] * self._size
        to_bytes = self._reader()
        for piece, i in self._model.get_vocab(with_added_tokens=False).items():
            surfaces[i] = to_bytes(piece)
        model = self._spec["model"]
        for unknown in (model.get("unk_id"), self._model.token_to_id(model.get("unk_token") or "")):
            if unknown is not None:
                surfaces[unknown] = b""
        for i, token in self._model.get_added_tokens_decoder().items():
            surfaces[i] = b"" if token.special else token.content.encode()
        return surfaces

    def _reader(self) -> Callable[[str], bytes]:
        """How a piece of this model is spelled, by the decoder that its file names."""
        decoder = self._spec.get("decoder") or {}
        kinds = {part["type"] for part in [decoder, *decoder.get("decoders", [])] if part}
        if "ByteLevel" in kinds:
            table = _byte_alphabet()
            return lambda piece: b"".join(table.get(char, char.encode()) for char in piece)
        if "WordPiece" in kinds:
            prefix = decoder.get("prefix", "##")
            # the space before a word is part of no piece: count it with the piece that begins the word
            return lambda p: p.removeprefix(prefix).encode() if p.startswith(prefix) else b" " + p.encode()
        if "ByteFallback" in kinds:
            values = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}
            return lambda piece: values.get(piece, piece.replace("\u2581", " ").encode())
        return lambda piece: piece.replace("\u2581", " ").encode()


def _open(content: bytes) -> Any:
    import tokenizers

    model = tokenizers.Tokenizer.from_buffer(content)
    model.encode_special_tokens = True  # text that spells a special token stays text
    model.no_truncation()
    model.no_padding()
    return model


def _byte_alphabet() -> dict[str, bytes]:
    """The characters that byte-level BPE writes bytes as (Radford et al. 2019): printable ones as themselves."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): bytes([b]) for b in printable} | {chr(256 + i): bytes([b]) for i, b in enumerate(others)}
