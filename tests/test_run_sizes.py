"""A run's length is the steps that come to it, its size the nearest width, its batch one however it is cut."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llmtrain import accounting
from llmtrain.batch import split_batch
from llmtrain.errors import ConfigError
from llmtrain.pretrain import train
from runs import metrics, write_text
from whole import ROWS, SEQ_LEN, ready, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.mark.parametrize("key", ["steps", "tokens", "epochs", "flops", "tokens_per_param"])
def test_a_length_is_the_steps_that_come_to_it(home: Path, key: str) -> None:
    setup = ready(tiny(home))
    n = accounting.size_of(setup.task.model)
    rows_of_7 = 7 * ROWS
    value = {
        "steps": 7,
        "tokens": rows_of_7 * SEQ_LEN,
        "epochs": rows_of_7 / setup.rows[0].n_rows,
        "flops": rows_of_7 * setup.flops.model,
        "tokens_per_param": rows_of_7 * SEQ_LEN / n.total,  # a tied head counts, once
    }[key]
    assert ready(tiny(home, **({"steps": "null"} | {key: value}))).horizon == 7


def test_a_run_takes_at_least_one_step(home: Path) -> None:
    assert ready(tiny(home, steps="null", tokens=1)).horizon == 1


def test_a_number_of_parameters_is_met_by_the_nearest_width(home: Path) -> None:
    run = tiny(home, size="n", size__n=50e3, size__n_layers=2, size__step=8, model__d_model="null")
    setup = ready(run)
    vocab_size = setup.prepared.vocab.size
    models = [dataclasses.replace(run.sized(vocab_size), d_model=width) for width in range(8, 128, 8)]
    sizes = [accounting.size(model, run.objective, vocab_size).total for model in models]
    assert accounting.size_of(setup.task.model).total == min(sizes, key=lambda n: abs(n - 50e3))


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_accumulation_is_one_batch(home: Path, optim: str) -> None:
    changes = {"optim": optim, "trainer__precision": "fp64", "steps": 6, "seq_len": 64, "eval__rows": 4}
    for micro_rows in (4, 1):
        train(tiny(home, name=f"{optim}-{micro_rows}", micro_rows=micro_rows, **changes))
    whole, parts = (metrics(home / "runs" / f"{optim}-{n}") for n in (4, 1))
    assert len(whole) == len(parts) == 7
    for a, b in zip(whole, parts, strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_rows": 3}, "micro_rows=3 does not divide the 4 rows .* micro_rows=2 does"),
        ({"trainer__devices": 3}, "batch_rows=4 cannot be shared out to 3 ranks"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(home: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_batch(tiny(home, **changes))
