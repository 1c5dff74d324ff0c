"""A tokenizer of ours as one of ``tokenizers``, with the same ids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from llmtrain.data.tokenizers import base
from llmtrain.errors import ConfigError
from llmtrain.export.sentencepiece import NEVER, apart, from_sentencepiece
from llmtrain.types import BOS

# what both are compared on, besides text of the run's own
TEXTS = (
    "Hello, world! It's 3.14159 times as good, isn't it?",
    "def f(x):\n\tif x:\n\t\treturn x  # tab\n    return None\r\n",
    "これは日本語の文章です。東京へ行きました。カタカナ、ひらがな、漢字。",
    "naïve café Ελληνικά русский العربية हिन्दी 한국어",
    "🙂👩‍👩‍👧‍👦🇯🇵 emoji",
    "   leading, trailing and    inner spaces   ",
    "\t\n\n \n",
    "U+2581 \u2581 and \u2585; private \U0010fe00\U0010fe011 \U0010fe02",
    "a" * 40 + " " * 33 + "-" * 50,
    "",
    "x",
)
_CONTENT = "tokenizer.model"  # beside the descriptor


def to_fast(folder: Path, *, ends: bool = False) -> Tokenizer:
    """The tokenizer that lies in ``folder``, with ids as they are: the reserved ones first, a foreign one's shifted.

    It begins a text with BOS, and ends it so where ``ends``, unless called with ``add_special_tokens=False``. Text that
    spells a reserved token becomes it, as is usual there; ``split_special_tokens=True`` keeps it text. Raises
    ConfigError where a tokenizer has what that library cannot do.
    """
    n = base.load_tokenizer(folder).n_reserved  # which checks the files against their hash
    descriptor = json.loads((folder / base.DESCRIPTOR).read_text())
    content = (folder / _CONTENT).read_bytes()
    names = base.reserved_names(n)
    if descriptor["kind"] == "bytes":
        fast = _bytes(names)
    elif descriptor["kind"] == "sentencepiece":
        fast = from_sentencepiece(content, reserved=names, **descriptor["options"])
    else:
        fast = _shifted(json.loads(content), names)
    names = [str(fast.id_to_token(i)) for i in range(n)]  # a clash may have changed them
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    assert [fast.token_to_id(name) for name in names] == list(range(n))
    end = f" {names[BOS]}" if ends else ""
    fast.post_processor = processors.TemplateProcessing(
        single=f"{names[BOS]} $A{end}",
        pair=f"{names[BOS]} $A{end} {names[BOS]} $B{end}",
        special_tokens=[(names[BOS], BOS)],
    )
    return fast


def check_ids(fast: Any, ours: base.Tokenizer, texts: Sequence[str]) -> None:
    """Raise ConfigError at the first text whose ids differ, or that ours gives back and ``fast`` does not.

    ``fast`` is one of ``transformers``. Of a unigram model the pieces must be the same, but not their order: where two
    orders have one score, as in a run of spaces, rounding decides, and SentencePiece's is of float32.
    """
    unigram = isinstance(fast.backend_tokenizer.model, models.Unigram)
    for text in texts:
        expected = ours.encode(text).tolist()
        found = fast(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if found != expected and not (unigram and sorted(found) == sorted(expected)):
            raise ConfigError(
                f"the tokenizer cannot be exported: {text[:40]!r} would become {found[:12]} instead of "
                f"{expected[:12]}; train with tokenizer=sentencepiece, whose text is not normalised"
            )
        if ours.decode(expected) == text and fast.decode(found) != text:
            raise ConfigError(
                f"the tokenizer cannot be exported: {text[:40]!r} would not come back from its ids"
            )


def _bytes(names: Sequence[str]) -> Tokenizer:
    """Bytes by the characters that byte-level BPE writes them as, and no merges."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_of = {char: ord(char) for char in characters if ord(char) < 256}
    rest = sorted(set(range(256)) - set(bytes_of.values()))
    bytes_of |= dict(zip([char for char in characters if ord(char) >= 256], rest, strict=True))
    vocab = {name: i for i, name in enumerate(names)}
    fast = Tokenizer(models.BPE(vocab | {char: len(names) + b for char, b in bytes_of.items()}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def _shifted(spec: dict[str, Any], names: Sequence[str]) -> Tokenizer:
    """A ``tokenizer.json`` whose ids begin after ``names``. Its own special tokens are kept as ids, and never found."""
    n, model = len(names), spec["model"]
    added = {token["id"] + n: token for token in spec.get("added_tokens") or ()}
    if isinstance(model["vocab"], dict):
        vocab = {piece: i + n for piece, i in model["vocab"].items()}
        vocab |= {token["content"]: i for i, token in added.items()}
        model["vocab"] = {name: i for i, name in enumerate(apart(names, vocab))} | vocab
    else:
        pieces = [tuple(pair) for pair in model["vocab"]]
        for i in range(n + len(pieces), max(added, default=0) + 1):  # ids may have holes, a list may not
            pieces.append((added[i]["content"] if i in added else f"<hole_{i}>", NEVER))
        model["vocab"] = [(name, NEVER) for name in apart(names, [piece for piece, _ in pieces])] + pieces
        model["unk_id"] = None if model.get("unk_id") is None else model["unk_id"] + n
    kept = [token | {"id": i} for i, token in added.items() if not token["special"]]
    ours = {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(spec | ours))
