"""Every experiment runs: composed as a user composes it, with a small text where it needs one, for two steps."""

import lzma
from pathlib import Path

import pytest

from llmtrain.compose import choices, run_from
from llmtrain.pretrain import train
from runs import write_text

SENTENCES = (
    "吾輩は猫である。名前はまだ無い。",
    "どこで生れたか頓と見當がつかぬ。",
    "何でも薄暗いじめじめした所で泣いて居た事丈は記憶して居る。",
    "「メロスは激怒した。」と、彼は言つた。",
    "山路を登りながら、かう考へた。智に働けば角が立つ。",
)


def japanese(folder: Path) -> Path:
    """Compressed, since that is how such corpora come."""
    path = folder / "ja.txt.xz"
    text = "\n".join(f"第{i}囘　{SENTENCES[i % 5]}{SENTENCES[i * i % 5]}" for i in range(1500))
    path.write_bytes(lzma.compress(text.encode()))
    return path


@pytest.mark.parametrize("experiment", choices()["experiment"])
def test_an_experiment_runs_two_steps(tmp_path: Path, experiment: str) -> None:
    # the data are small, and the vocabulary what so little text can fill; all else is the experiment's
    text = japanese(tmp_path) if experiment.endswith("_ja") else write_text(tmp_path)
    run = run_from(
        [
            f"experiment={experiment}", "steps=2", f"runs={tmp_path / 'runs'}", "batch_rows=2", "eval.rows=2",
            "data=text", f"data.source.paths=[{text}]", f"data.cache={tmp_path / 'cache'}", "data.workers=1",
            "data.validation_min_bytes=2000", "tokenizer.vocab_size=700", "seq_len=64", "eval.samples=1",
            "trainer.precision=fp32", "trainer.threads=1",
        ]
        + ["objective.eval_negatives=3"] * experiment.startswith("contrastive")
    )  # fmt: skip
    record = train(run)
    assert record is not None
    assert (record.steps, record.status) == (2, "finished")
    assert record.run.startswith(f"{experiment}-")
    assert record.score.value > 0
    assert record.validation.keys() >= {f"validation/{record.score.name}"}
    if run.objective.likelihood:
        assert record.bits_per_byte is not None and 0 < record.bits_per_byte < 12
