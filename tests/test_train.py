"""A whole run: what it leaves, and that its numbers agree with one another, as its scores do."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import llmtrain
from llmtrain import accounting
from llmtrain.pretrain import scorer, train
from llmtrain.record import RunRecord
from runs import metrics, weights, write_text
from whole import ROWS, SCORE, SEQ_LEN, STEPS, finished, ready, tiny

NAMED = {"numbers": "txt", "again": "jsonl"}  # sets held out, and their files

# what later parts read
PINNED = {
    "run", "cell", "trunk", "parent", "branch_step", "series", "objective", "architecture", "size", "n",
    "seed_init", "seed_data", "seq_len", "batch_rows", "steps", "horizon_steps", "warmup_steps",
    "decay_steps", "lr", "betas", "weight_decay", "precision", "parametrization", "raw_tokens", "positions",
    "scored", "pairs", "unique_tokens", "epochs", "flops_model", "flops_counter", "flops_6nd", "score", "bits_per_byte",
    "status", "decayed", "tokens_per_second", "mfu", "peak_memory_bytes", "wall_seconds", "device",
    "corpus_fingerprint", "tokenizer_hash", "config_hash", "git", "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> RunRecord:
    return finished(home)


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def extras(home: Path) -> tuple[RunRecord, list[str]]:
    """The record of the same run, profiled and with two more validation sets; and what it logged."""
    (home / "numbers.txt").write_text("".join(f"{i} is followed by {i + 1}\n" for i in range(200)))
    again = [{"text": (home / file).read_text()} for file in ("text.txt", "numbers.txt")]
    (home / "again.jsonl").write_text("".join(json.dumps(document) + "\n" for document in again))
    sets = {f"data__held_out__{name}": home / f"{name}.{kind}" for name, kind in NAMED.items()}
    logger, said = logging.getLogger("llmtrain"), Said()
    level = logger.level
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        record = train(tiny(home, name="extras", eval__every=5, trainer__profile=4, **sets))
    finally:
        logger.removeHandler(said)
        logger.setLevel(level)
    assert record is not None
    return record, said.lines


# ---- what a run leaves


def test_a_finished_run_leaves_these_files_and_no_others(home: Path, done: RunRecord) -> None:
    folder = home / "runs" / "done"
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "config.yaml", "overrides.yaml", "environment.json", "files.json", "metrics.jsonl", "checkpoints",
        "samples.md", "figures", "record.json", "tokenizer",
    }  # fmt: skip
    assert {p.name for p in (folder / "figures").iterdir()} == {"loss.png", "loss.svg"}
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {f"step-{STEPS:08d}"}
    assert (folder / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "overrides.yaml").read_text() == "- name=done\n- eval.every=5\n"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment.keys() >= {"started", "command", "git", "versions", "host"}
    assert (folder / "samples.md").read_text().count("Made:") == 1


def test_the_record_has_every_field_that_later_parts_read(home: Path, done: RunRecord) -> None:
    written = json.loads((home / "runs" / "done" / "record.json").read_text())
    assert written.keys() - PINNED == {"validation", "skipped_steps", "rollbacks"}
    assert written.keys() >= PINNED
    assert written["n"].keys() == {"total", "embedding", "head", "active", "non_embedding"}
    assert written["score"].keys() == {"name", "value", "se", "n", "unit", "eval_hash"}
    assert RunRecord.read(home / "runs" / "done" / "record.json") == done


def test_the_numbers_of_a_record_agree_with_one_another_and_with_the_model(
    home: Path, done: RunRecord
) -> None:
    run = tiny(home, name="done", eval__every=5)
    setup, rows = ready(run), STEPS * ROWS
    assert (done.steps, done.horizon_steps, done.batch_rows, done.seq_len) == (STEPS, STEPS, ROWS, SEQ_LEN)
    assert done.raw_tokens == done.positions == done.scored == rows * SEQ_LEN
    assert done.pairs is None
    assert done.unique_tokens == min(done.raw_tokens, setup.n_tokens)
    assert done.epochs == done.raw_tokens / setup.n_tokens
    n, model = done.n, setup.task.model
    assert n.total == n.active == sum(p.numel() for p in model.parameters())
    assert (n.embedding, n.head) == (model.embed.weight.numel(), 0)
    assert n.non_embedding == n.total - n.embedding
    per_row = accounting.flops_of(model, run.objective, SEQ_LEN, ROWS)
    assert (done.flops_model, done.flops_counter) == (rows * per_row.model, rows * per_row.counter)
    # 6ND counts what is multiplied: the tied table once, as the head
    assert done.flops_6nd == 6 * n.total * done.raw_tokens
    assert (done.warmup_steps, done.decay_steps) == (0, STEPS) and done.decayed
    assert (done.lr, done.betas, done.weight_decay) == (run.optim.lr, run.optim.betas, run.optim.weight_decay)
    assert (done.objective, done.architecture, done.series) == ("clm", "dense", "clm_dense")
    assert (done.size, done.precision, done.status) == ("1x16", "fp32", "finished")
    assert (done.run, done.config_hash) == ("done", run.config_hash)
    assert done.corpus_fingerprint == setup.prepared.fingerprint
    assert done.tokenizer_hash == setup.prepared.tokenizer.hash
    assert done.versions["torch"] == torch.__version__
    assert done.git is None or len(done.git.removesuffix("+changes")) == 40
    assert done.validation == {SCORE: done.score}
    assert done.peak_memory_bytes > 4 * n.total
    assert 0 < done.mfu < 2 and done.device.startswith("cpu")


def test_the_record_agrees_with_the_metrics(home: Path, done: RunRecord) -> None:
    rows = [json.loads(line) for line in (home / "runs" / "done" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in steps] == [ROWS * SEQ_LEN * (i + 1) for i in range(STEPS)]
    assert (steps[-1]["tokens"], steps[-1]["flops"]) == (done.raw_tokens, done.flops_model)
    scores = [row for row in rows if "validation/clm_nats_per_token" in row]
    assert [row["step"] for row in scores] == [5, 10, STEPS]
    assert scores[-1]["validation/clm_nats_per_token"] == done.score.value
    assert scores[-1]["validation/bits_per_byte"] == done.bits_per_byte
    assert steps[0]["loss"] > steps[-1]["loss"] > done.score.value - 1
    assert steps[-1]["seconds"] == pytest.approx(done.raw_tokens / done.tokens_per_second)
    assert steps[-1]["seconds"] < done.wall_seconds


# ---- what does not change a run


def test_sets_that_are_held_out_by_name_are_scored_with_the_rest_and_are_no_part_of_the_runs_score(
    home: Path, done: RunRecord, extras: tuple[RunRecord, list[str]]
) -> None:
    record, said = extras
    assert record.validation.keys() == {SCORE, *(f"{name}/clm_nats_per_token" for name in NAMED)}
    assert record.validation[SCORE] == record.score == done.score
    assert len({score.eval_hash for score in record.validation.values()}) == 3
    n_bytes = (home / "numbers.txt").stat().st_size
    assert (
        record.validation["numbers/clm_nats_per_token"].n == n_bytes + 1
    )  # of bytes, and the BOS that ends them
    rows = [row for row in metrics(home / "runs" / "extras") if SCORE in row]
    assert [row["step"] for row in rows] == [5, 10, STEPS]
    for name in NAMED:
        assert all({f"{name}/clm_nats_per_token", f"{name}/bits_per_byte"} <= row.keys() for row in rows)
        assert rows[-1][f"{name}/clm_nats_per_token"] == record.validation[f"{name}/clm_nats_per_token"].value
    copies = [line for line in said if "exact copies" in line]
    assert len(copies) == 1 and copies[0].startswith("held-out set again: 1 of its 2 documents")


def test_profiling_and_further_sets_change_no_bit_of_a_run(
    home: Path, done: RunRecord, extras: tuple[RunRecord, list[str]]
) -> None:
    rows = metrics(home / "runs" / "extras")
    shared = [{key: row[key] for key in row if key.partition("/")[0] not in NAMED} for row in rows]
    assert shared == metrics(home / "runs" / "done")
    assert weights(home / "runs" / "extras", STEPS) == weights(home / "runs" / "done", STEPS)


def test_a_profile_is_a_table_and_a_trace_of_so_many_steps(
    home: Path, extras: tuple[RunRecord, list[str]]
) -> None:
    folder = home / "runs" / "extras" / "profile"
    assert [line for line in extras[1] if "profile" in line] == [
        f"profiled 4 steps: {folder / 'table.txt'}, {folder / 'trace.json'}"
    ]
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#CompositeOptimizer.step" for event in events) == 4
    table = (folder / "table.txt").read_text().splitlines()
    assert table[0] == "4 steps" and any("aten::mm" in line for line in table)
    assert {p.name for p in folder.iterdir()} == {"table.txt", "trace.json"}


def test_a_run_that_ends_before_it_is_warm_says_that_nothing_is_profiled(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny(home, name="cold", steps=2, seq_len=64, trainer__profile=1))
    assert "no step was profiled" in caplog.text
    assert not (home / "runs" / "cold" / "profile").exists()


# ---- scores


def test_a_loaded_run_has_the_score_of_its_record(home: Path, done: RunRecord) -> None:
    loaded = llmtrain.load(home / "runs" / "done")
    assert loaded.config.name == "done"
    setup = ready(loaded.config)
    setup.task.model.load_state_dict(loaded.model.state_dict())
    found = scorer(setup, ROWS)(None)[SCORE]
    assert found.score == done.score and found.bits_per_byte == done.bits_per_byte
    assert loaded.tokenizer.hash == done.tokenizer_hash


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_a_score_does_not_depend_on_how_many_rows_are_taken_at_a_time(
    home: Path, done: RunRecord, batch_rows: int
) -> None:
    setup = ready(tiny(home, name="done", trainer__precision="fp64", eval__batch_rows=batch_rows))
    setup.task.double()
    one = scorer(setup, ROWS)(None)[SCORE]
    other = scorer(setup._replace(run=tiny(home, trainer__precision="fp64")), ROWS)(None)[SCORE]
    assert one.score.value == pytest.approx(other.score.value, rel=1e-12)
    assert one.score.se == pytest.approx(other.score.se, rel=1e-10)
    assert (one.score.n, one.score.eval_hash) == (other.score.n, other.score.eval_hash)


def test_held_out_rows_are_the_same_whatever_the_seed(home: Path, done: RunRecord) -> None:
    one, other = (ready(tiny(home, seed=seed)).held_out[SCORE].rows for seed in (0, 1))
    assert one.n_rows == other.n_rows
    for i in range(one.n_rows):
        assert all(np.array_equal(a, b) for a, b in zip(one[i], other[i], strict=True))
    assert train(tiny(home, name="seed1", seed=1, steps=1)).score.eval_hash == done.score.eval_hash  # type: ignore[union-attr]
