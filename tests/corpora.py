"""Small corpora of random words, and what was prepared of them."""

import json
from functools import cache
from pathlib import Path

from llmtrain.data.prepare import Prepared
from llmtrain.data.shards import Shards
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.philox import generator

BYTES = Bytes(n_sentinels=0)


@cache
def prose(seed: int, n_lines: int) -> str:
    """Lines of random words: no two texts of different seeds share any."""
    rng = generator(seed, "prose")
    words = rng.integers(0, 1 << 20, (n_lines, 8))
    return "".join(" ".join(f"{word:x}" for word in line) + "\n" for line in words)


def write_documents(path: Path, documents: list[str]) -> TextFiles:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return TextFiles(paths=str(path))


def documents_of(prepared: Prepared, shards: Shards) -> list[str]:
    """The text of each document; ids are turned into bytes by the vocabulary's surfaces, which is fast."""
    surfaces = [b""] * prepared.vocab.n_reserved + prepared.tokenizer.surfaces()
    spans = zip(shards.offsets[:-1].tolist(), shards.offsets[1:].tolist(), strict=True)
    return [b"".join([surfaces[i] for i in shards.tokens[a:b].tolist()]).decode() for a, b in spans]


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is prepared, but the seconds that it took."""
    kept = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("report.json", ".verified.json"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}
