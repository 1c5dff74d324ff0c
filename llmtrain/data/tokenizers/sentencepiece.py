"""SentencePiece: trained here so that it loses nothing, or an existing model as its makers left it."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import xxhash

from llmtrain.config import config
from llmtrain.data.tokenizers.base import (
    Tokenizer,
    TokenizerConfig,
    read_model_file,
    reserved_names,
    save_tokenizer,
    utf8,
)
from llmtrain.data.tokenizers.escape import REQUIRED, escape, raw_bytes, unescape
from llmtrain.errors import ConfigError, DataError

_CUT = re.compile(r"(?<=[^ ])(?= )")
_STRETCH = 1000  # characters
_SECTION = 4096  # characters: the unigram trainer's scores overflow on longer runs without spaces
_N_THREADS = 2  # a constant: the unigram trainer's sums depend on it, and the model file records it


@config
class SentencePiece(TokenizerConfig):
    """SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226), trained on the corpus.

    With byte fallback and identity normalisation, decode(encode(text)) == text for all text, and the bytes of
    the tokens sum to those of the text. Documents are read in their order until ``max_training_bytes``.
    """

    model_type: Literal["bpe", "unigram"] = "bpe"
    vocab_size: int = 8192  # all ids, reserved and byte ids included
    byte_fallback: bool = True  # a character that is no piece becomes bytes, not <unk>
    character_coverage: float = 0.9995  # the share of the text's characters that become pieces
    normalization: Literal["identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"] = "identity"
    split_digits: bool = False  # one piece a digit
    max_training_bytes: int = 10_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        n_bytes = 256 if self.byte_fallback else 0
        if self.vocab_size <= self.n_reserved + n_bytes:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no piece: {self.n_reserved} ids are reserved and "
                f"{n_bytes} are bytes; set it above {self.n_reserved + n_bytes}, "
                f"or lower tokenizer.n_sentinels={self.n_sentinels}"
            )
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(
                f"tokenizer.character_coverage={self.character_coverage} must be above 0 and at most 1"
            )
        if self.max_training_bytes < 1:
            raise ConfigError(f"tokenizer.max_training_bytes={self.max_training_bytes} must be at least 1")

    @property
    def _escaped(self) -> bool:
        return self.normalization == "identity"  # the others change text anyway, tabs among it

    def build(self, texts: Callable[[], Iterator[str]], folder: Path) -> Tokenizer:
        sections = list(_sections(texts(), self.max_training_bytes))
        if not sections:
            raise DataError("there is no text to train the tokenizer on: the corpus is empty")
        prepared = map(escape, sections) if self._escaped else iter(sections)
        content = self._train(prepared)
        return save_tokenizer(
            folder,
            "sentencepiece",
            n_reserved=self.n_reserved,
            content=content,
            options={"shifted": False, "escaped": self._escaped},
        )

    def _train(self, sections: Iterator[str]) -> bytes:
        import sentencepiece

        from llmtrain.types import BOS, PAD, UNK

        names = reserved_names(self.n_reserved)
        model = io.BytesIO()
        options: dict[str, Any] = {
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "byte_fallback": self.byte_fallback,
            "character_coverage": self.character_coverage,
            "normalization_rule_name": self.normalization,
            "split_digits": self.split_digits,
            "required_chars": REQUIRED if self._escaped else "",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "max_sentence_length": 1 << 20,
            "num_threads": _N_THREADS,
            "minloglevel": 3,
            # the reserved ids are control symbols, which no text becomes; they fill the ids that are not named
            **{"pad_id": PAD, "bos_id": BOS, "unk_id": UNK, "eos_id": -1},
            **{"pad_piece": names[PAD], "bos_piece": names[BOS], "unk_piece": names[UNK]},
            "control_symbols": [name for i, name in enumerate(names) if i not in (PAD, BOS, UNK)],
        }
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sections, model_writer=model, **options
            )
        except RuntimeError as error:
            self._explain(str(error))
        return model.getvalue()

    def _explain(self, error: str) -> NoReturn:
        if small := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
            raise DataError(
                f"tokenizer.vocab_size={self.vocab_size} is too small for this text: reserved ids, bytes and "
                f"characters take {small[1]}; set it to at least {small[1]}, "
                f"or lower tokenizer.character_coverage={self.character_coverage}"
            )
        if large := re.search(r"too high \(\d+\).* <= (\d+)", error):
            raise DataError(
                f"tokenizer.vocab_size={self.vocab_size} is more than this text has pieces for; "
                f"set it to at most {large[1]}, or give more text"
            )
        raise DataError(f"SentencePiece cannot train on this text: {error}; try another tokenizer.model_type")


@config
class SentencePieceModel(TokenizerConfig):
    """An existing ``.model`` file: piece i becomes id ``n_reserved + i``, and all else stays as in the model.

    Its own control ids are kept and never used, and its <unk> stays its own. What it loses (a leading space with
    its dummy prefix, a literal U+2581, what it normalises) stays lost.
    """

    file: str

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"file": xxhash.xxh3_128_hexdigest(read_model_file(self.file))}

    def build(self, texts: Callable[[], Iterator[str]], folder: Path) -> Tokenizer:
        content = read_model_file(self.file)
        try:
            _processor(content)
        except RuntimeError:
            raise DataError(
                f"tokenizer.file={self.file} is no SentencePiece model; "
                "a tokenizer.json goes with tokenizer=huggingface"
            ) from None
        return save_tokenizer(
            folder,
            "sentencepiece",
            n_reserved=self.n_reserved,
            content=content,
            options={"shifted": True, "escaped": False},
        )


class SentencePieceTokenizer(Tokenizer):
    """``shifted``: the model knows nothing of the reserved ids; ``escaped``: it was trained on escaped text."""

    def __init__(
        self, content: bytes, *, n_reserved: int, content_hash: str, shifted: bool, escaped: bool
    ) -> None:
        super().__init__(n_reserved, content_hash)
        self._model = _processor(content)
        self._shift = n_reserved if shifted else 0
        self._escaped = escaped

    @property
    def vocab_size(self) -> int:
        return self._shift + self._model.get_piece_size()

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if not self._escaped:  # a model that normalises, or adds a space, must see each text whole
            encoded = self._model.encode(list(texts), out_type=int, num_threads=1)
            return [np.array(ids, dtype=np.int32) + self._shift for ids in encoded]
        cut = [_stretches(escape(text)) for text in texts]
        encoded = self._model.encode([part for parts in cut for part in parts], out_type=int, num_threads=1)
        pieces = iter(encoded)
        return [np.fromiter(chain.from_iterable(islice(pieces, len(parts))), dtype=np.int32) for parts in cut]

    def _decode(self, ids: list[int]) -> str:
        text = self._model.decode([i - self._shift for i in ids])
        return unescape(text) if self._escaped else text

    def surfaces(self) -> list[bytes]:
        return [self._surface(i) for i in range(self.n_reserved - self._shift, self._model.get_piece_size())]

    def _surface(self, piece_id: int) -> bytes:
        if self._model.is_control(piece_id) or self._model.is_unknown(piece_id):
            return b""
        piece = self._model.id_to_piece(piece_id)
        if self._model.is_byte(piece_id):
            return bytes([int(piece[3:5], 16)])  # "<0xE3>"
        spaced = piece.replace("\u2581", " ")
        return raw_bytes(spaced) if self._escaped else spaced.encode()


def _processor(content: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=content)


def _stretches(text: str) -> list[str]:
    """Cut before spaces, which begin a piece: the ids stay the same, and long texts encode up to 2.5 times faster."""
    cuts = [0]
    while len(text) - cuts[-1] > _STRETCH and (found := _CUT.search(text, cuts[-1] + _STRETCH)):
        cuts.append(found.start())
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def _sections(texts: Iterator[str], max_bytes: int) -> Iterator[str]:
    """The texts, newlines and all, in sections that end at a newline where they can, up to ``max_bytes`` in all."""
    left = max_bytes
    for text in texts:
        start = 0
        while start < len(text):
            end = min(start + _SECTION, len(text))
            if end < len(text):
                end = text.rfind("\n", start, end) + 1 or end
            left -= len(utf8(text[start:end]))
            yield text[start:end]
            if left <= 0:
                return
            start = end
