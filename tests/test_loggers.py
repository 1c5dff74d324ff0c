"""Other destinations of the metrics get the rows of metrics.jsonl, or are left out."""

from pathlib import Path

import pytest

from llmtrain.callbacks.loggers.wandb import WandB
from llmtrain.pretrain import train
from runs import metrics, write_text
from whole import tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


def test_tensorboard_gets_the_rows_of_the_metrics(home: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny(home, name="board", logger="tensorboard", steps=3, seq_len=64))
    events = EventAccumulator(str(home / "runs" / "board" / "tensorboard")).Reload()
    rows = [row for row in metrics(home / "runs" / "board") if "loss" in row]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows
    ]
    assert events.Scalars("validation/clm_nats_per_token")


def test_a_wandb_that_cannot_even_begin_offline_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def init(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", init)
    [sink] = WandB(mode="offline").open(tmp_path, {}, step=0)
    sink.log({"step": 1, "loss": 1.0})
    sink.close()
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        "wandb failed ([Errno 28] No space left on device) and is left out from here on; metrics.jsonl has everything"
    ]


@pytest.mark.slow
def test_wandb_logs_offline_into_the_folder_of_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody is logged in
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    record = train(tiny(home, name="wandb", logger="wandb", steps=2, seq_len=64))
    assert record is not None and record.status == "finished"
    assert len(list((home / "runs" / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert not list(tmp_path.rglob("*.wandb"))
