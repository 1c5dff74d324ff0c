"""A Hugging Face folder that a run begins from: its weights where they mean the same, else one line."""

from pathlib import Path

import pytest
import torch

from llmtrain import load
from llmtrain.errors import ConfigError
from llmtrain.export.folder import Trained, export
from llmtrain.loading import folder_of
from llmtrain.pretrain import train
from llmtrain.run_folder import TOKENIZER
from ranks import on_ranks
from runs import stopped, tiny, write_text

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trained run, and the folder that it was exported to."""
    home = tmp_path_factory.mktemp("start")
    write_text(home)
    train(tiny(home, name="first", steps=6, seq_len=64))
    path = home / "runs" / "first"
    found = load(path)
    trained = Trained(
        cfg=found.config.sized(found.tokenizer.vocab_size),
        model=found.model,
        objective=found.objective,
        tokenizer=found.tokenizer,
        tokenizer_folder=folder_of(path) / TOKENIZER,
        seq_len=64,
    )
    export(trained, home / "public")
    return home


def test_a_run_begins_with_the_weights_of_a_folder_that_another_was_exported_to(home: Path) -> None:
    run = tiny(home, name="second", steps=1, seq_len=64, init_from=home / "public", optim__lr=1e-30)
    record = train(run)
    assert record is not None and record.parent == str(home / "public")
    first, second = (load(home / "runs" / name).model.state_dict() for name in ("first", "second"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-6)


def test_a_readout_is_taken_out_of_the_weights_that_a_run_begins_with(home: Path) -> None:
    run = tiny(
        home, name="wide", steps=1, seq_len=64, init_from=home / "public", optim__lr=1e-30,
        parametrization="mup", parametrization__base_width=8,
    )  # fmt: skip
    train(run)
    first, wide = (load(home / "runs" / name).model for name in ("first", "wide"))
    assert wide.readout == 0.5
    torch.testing.assert_close(0.5 * wide.trunk.norm.weight, first.trunk.norm.weight, rtol=0, atol=1e-6)


def test_ranks_that_hold_parts_begin_with_the_same_weights(home: Path) -> None:
    run = tiny(
        home, name="parts", steps=1, seq_len=64, init_from=home / "public", optim__lr=1e-30,
        trainer="fsdp", trainer__accelerator="cpu",
    )  # fmt: skip
    on_ranks(2, lambda: train(run))
    first, parts = (load(home / "runs" / name).model.state_dict() for name in ("first", "parts"))
    for name, weight in first.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=1e-6)


def test_a_run_that_was_begun_so_is_gone_on_with(home: Path) -> None:
    run = tiny(home, name="third", steps=4, seq_len=64, init_from=home / "public")
    assert stopped(run, 2) == 143
    record = train(run)
    assert record is not None and (record.steps, record.parent) == (4, str(home / "public"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model__layers__0__mixer__rope_base": 500.0},
            "model.layers.0.mixer.rope_base=10000.0, and this run 500.0",
        ),
        ({"model__d_model": 32}, "model.d_model=16, and this run 32"),
        ({"objective": "mlm"}, "causal stack, and this run's objective needs bidirectional stack"),
        ({"tokenizer": "sentencepiece", "tokenizer__vocab_size": 400}, "another tokenizer"),
    ],
)
def test_a_folder_that_means_something_else_is_refused_in_one_line(
    home: Path, changes: dict, said: str
) -> None:
    with pytest.raises(ConfigError, match="init_from") as error:
        train(tiny(home, name="other", steps=1, seq_len=64, init_from=home / "public", **changes))
    assert said in str(error.value) and "\n" not in str(error.value)
