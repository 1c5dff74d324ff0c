"""A score is what a hand computes, of every held-out token once, and a mix has one for each of its parts."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.sources.text import TextFiles
from llmtrain.pretrain import scorer, train
from llmtrain.setup import held_out
from runs import write_text
from whole import ROWS, SCORE, SEQ_LEN, ready, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


def test_a_score_counts_every_held_out_token_once_and_is_what_a_hand_computes(home: Path) -> None:
    setup = ready(tiny(home, trainer__precision="fp64"))
    task, vocab = setup.task.double(), setup.prepared.vocab
    found = scorer(setup, ROWS)(None)[SCORE]
    shards = held_out(setup.prepared)["validation"]
    assert found.score.n == shards.n_tokens - 1
    tokens = torch.tensor(shards.tokens[:].astype(np.int64))
    nats, counts = [], []
    with torch.no_grad():  # rows by hand, one at a time and without padding
        for start in range(0, len(tokens) - 1, SEQ_LEN):
            ids = tokens[start : start + SEQ_LEN + 1]
            nats.append(_nats(task, vocab, ids))
            counts.append(len(ids) - 1)
    value = sum(nats) / sum(counts)
    assert found.score.value == pytest.approx(value, rel=1e-10)
    residuals = [a - value * b for a, b in zip(nats, counts, strict=True)]
    n = len(nats)
    se = math.sqrt(n / (n - 1) * sum(r * r for r in residuals)) / sum(counts)
    assert found.score.se == pytest.approx(se, rel=1e-10)
    raw_bytes = (home / "text.txt").stat().st_size - setup.prepared.train[0].shards.n_bytes
    assert raw_bytes == shards.n_bytes
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / raw_bytes, rel=1e-10)


def _nats(task: Any, vocab: Any, ids: torch.Tensor) -> float:
    """Of one row, from the logits themselves."""
    from llmtrain.types import Row

    row = Row(ids.numpy(), np.cumsum(ids.numpy() == 1))
    example = task.objective.example(row, vocab, seq_len=len(ids) - 1, rng=np.random.default_rng(0))
    text = type(example.text)(*(torch.as_tensor(np.array(a))[None] for a in example.text))
    logits = task.model.head(task.model(text).h[0])
    return -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].sum().item()


def test_a_mix_has_a_score_for_each_of_its_parts(home: Path) -> None:
    (home / "other.txt").write_text("".join(f"{i} is followed by {i + 1}\n" for i in range(2000)))
    parts = {
        name: Corpus(source=TextFiles(paths=[str(home / file)]))
        for name, file in (("code", "text.txt"), ("numbers", "other.txt"))
    }
    mix = Mix(
        components=parts,
        weights={"code": 3, "numbers": 1},
        held_out={"named": str(home / "other.txt")},
        cache=str(home / "cache"),
        workers=1,
    )
    run = dataclasses.replace(tiny(home, name="mix", steps=2, seq_len=64), data=mix)
    record = train(run)
    assert record is not None
    sets = {"named", *(f"validation_{part}" for part in parts)}
    assert record.validation.keys() == {f"{name}/clm_nats_per_token" for name in sets}
    code, numbers = (record.validation[f"validation_{part}/clm_nats_per_token"] for part in parts)
    assert record.score.n == code.n + numbers.n
    assert record.score.value * record.score.n == pytest.approx(
        code.value * code.n + numbers.value * numbers.n
    )
    assert len({score.eval_hash for score in record.validation.values()}) == 3
