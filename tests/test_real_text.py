"""On real text a model learns more than which tokens are frequent, and what it says of bytes holds for the text."""

import json
import lzma
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmtrain
from llmtrain.compose import run_from
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from llmtrain.run import Run
from llmtrain.types import BOS
from runs import SHARED

JAPANESE = SHARED / "corpora" / "aozora_ja.jsonl.xz"
SMALL = (
    "size=d1", "seq_len=128", "batch_rows=8", "tokenizer.n_sentinels=0", "tokenizer.vocab_size=2048", "optim=muon",
    "trainer.precision=fp32", "trainer.threads=1", "data.workers=1", "eval.samples=2", "data.max_bytes=1500000",
    "data.validation_min_bytes=60000", "data.validation_fraction=0.04",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["python", "japanese"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(run, its data, its record)."""
    folder = tmp_path_factory.mktemp(request.param)
    words = [*SMALL, f"runs={folder}", f"data.cache={folder / 'cache'}", "name=a"]
    if request.param == "japanese":
        if not JAPANESE.exists():
            pytest.skip(f"{JAPANESE} is not here")
        words += [
            "experiment=clm_dense_ja",
            "data=text",
            f"data.source.paths=[{JAPANESE}]",
            "data.max_bytes=500000",
            "steps=150",
            "tokenizer.vocab_size=3072",
        ]
    else:
        words += ["experiment=quickstart", "steps=100"]
    run = run_from(words)
    record = train(run)
    assert record is not None
    return run, prepare(run.data, run.tokenizer), record


def unigram_score(prepared: Prepared) -> float:
    """Held-out nats a token of a model that knows nothing but how frequent each token is in the training data."""
    counts = np.bincount(prepared.train[0].shards.tokens[:].astype(np.int64), minlength=prepared.vocab.size)
    p = (counts + 1) / (counts + 1).sum()
    return float(-np.log(p[prepared.validation["corpus"].tokens[:].astype(np.int64)]).mean())


def test_a_short_run_beats_the_frequencies_of_single_tokens(trained: tuple[Run, Prepared, RunRecord]) -> None:
    _, prepared, record = trained
    assert record.score.value < unigram_score(prepared) - 0.5
    assert record.score.se < 0.2


def test_bits_per_byte_are_those_of_the_raw_text(trained: tuple[Run, Prepared, RunRecord]) -> None:
    run, prepared, record = trained
    shards = prepared.validation["corpus"]
    text = prepared.tokenizer.decode(shards.tokens[:].astype(np.int64).tolist())
    assert len(text.encode()) == shards.n_bytes
    assert record.score.n == shards.n_tokens - 1
    bits = record.score.value * record.score.n / (math.log(2) * shards.n_bytes)
    assert record.bits_per_byte == pytest.approx(bits)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["validation/bits_per_byte"] == record.bits_per_byte


def test_samples_are_text(trained: tuple[Run, Prepared, RunRecord]) -> None:
    run, _, _ = trained
    text = (run.folder / "samples.md").read_bytes().decode("utf-8")  # refuses what is no UTF-8
    assert text.count("Given:") == text.count("Made:") == 2
    assert text.count("\N{REPLACEMENT CHARACTER}") < 0.05 * len(text)


def test_the_tokenizer_of_a_run_loses_nothing(trained: tuple[Run, Prepared, RunRecord]) -> None:
    run, prepared, _ = trained
    tokenizer = llmtrain.load(run.folder).tokenizer
    tokens = prepared.validation["corpus"].tokens[:].astype(np.int64)
    starts = np.flatnonzero(tokens == BOS)
    document = tokenizer.decode(tokens[: starts[1] if len(starts) > 1 else None].tolist())
    for text in (
        document,
        "def f():\n\treturn  '  🙂 日本語 \u3000'\r\n",
        "<s> </s> <unk> <mask>",
        "改行\n\n　全角",
    ):
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_the_text_is_the_text_of_the_files(tmp_path: Path) -> None:
    """Japanese in, the same Japanese out: the shards decode to what the lines of the corpus say."""
    if not JAPANESE.exists():
        pytest.skip(f"{JAPANESE} is not here")
    with lzma.open(JAPANESE, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(5), lines, strict=False)]
    own = tmp_path / "five.jsonl"
    own.write_text("".join(json.dumps({"text": t[:20_000]}) + "\n" for t in texts), encoding="utf-8")
    run = run_from(
        [
            "experiment=clm_dense_ja", "data=text", f"data.source.paths=[{own}]", f"data.cache={tmp_path / 'cache'}",
            "tokenizer=bytes", "data.workers=1", "data.validation_min_bytes=0", "data.validation_fraction=0.1",
        ]
    )  # fmt: skip
    prepared = prepare(run.data, run.tokenizer)
    kept = ""
    for shards in (prepared.train[0].shards, *prepared.validation.values()):
        kept += prepared.tokenizer.decode(shards.tokens[:].astype(np.int64).tolist())
    # a long line may be cut between training and validation, so what is compared is characters
    assert Counter(kept) == Counter("".join(text[:20_000] for text in texts))
