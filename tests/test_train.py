"""A whole run: what it leaves, that its numbers agree with one another, and what a second start may do."""

import dataclasses
import json
import logging
import math
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmtrain
from llmtrain import accounting
from llmtrain.batch import split_batch
from llmtrain.callbacks.loggers.wandb import WandB
from llmtrain.checkpoint import find, load, save
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.prepare import prepare
from llmtrain.data.sources.text import TextFiles
from llmtrain.errors import ConfigError, DataError, NumbersError
from llmtrain.pretrain import scorer, train
from llmtrain.record import RunRecord
from llmtrain.run import Run
from llmtrain.setup import Setup, held_out, set_up
from llmtrain.trainer import Trainer
from runs import REPO, metrics, overrides, weights, write_text
from runs import tiny as tiny_run

STEPS, ROWS, SEQ_LEN = 12, 4, 512  # of a tiny run
SCORE = "validation/clm_nats_per_token"
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


def tiny(home: Path, **changes: Any) -> Run:
    """Samples take as long as the training does, so only the run that most tests look at makes one."""
    return tiny_run(home, **({"eval__samples": 0} | changes))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> RunRecord:
    """The record of the run that most tests look at."""
    run = tiny(home, name="done", eval__every=5, eval__samples=1)
    record = train(run, overrides=["name=done", "eval.every=5"])
    assert record is not None
    return record


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


def ready(run: Run) -> Setup:
    return set_up(run, prepare(run.data, run.tokenizer))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unfinished(home: Path, name: str) -> Path:
    """A copy of the finished run that lacks its record, as if the machine had died before the last moment."""
    copy = home / "runs" / name
    shutil.copytree(home / "runs" / "done", copy)
    (copy / "record.json").unlink()
    return copy


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


# ---- a second start


def test_a_second_start_of_a_finished_run_trains_nothing(
    home: Path, done: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(home / "runs" / "done")
    assert train(tiny(home, name="done", eval__every=5)) == done
    assert contents(home / "runs" / "done") == before
    assert capsys.readouterr().out == ""


OTHER = {  # what is changed, and how it is shown
    "rate": ({"optim__lr": 0.5}, "optim.lr: 0.003 there, 0.5 now"),
    "seed": ({"seed": 7}, "seed: 0 there, 7 now"),
    "row": ({"seq_len": 64}, "seq_len: 512 there, 64 now"),
    "model": ({"model__norm": "sandwich"}, 'model.norm: "pre" there, "sandwich" now'),
    "layer": ({"model__layers__0__mixer__window": 8}, "mixer.window: null there, 8 now"),
    "class": ({"schedule": "wsd"}, "llmtrain.optim.schedules.WSD"),
}
LENGTH = {
    "shorter": ({"steps": 4}, "steps: 12 there, 4 now"),
    "in tokens": ({"steps": "null", "tokens": 1e4}, "tokens: null there, 10000.0 now"),
}


@pytest.mark.parametrize("what", [*OTHER, *LENGTH])
def test_another_config_in_the_folder_of_a_finished_run_is_refused_and_changes_nothing(
    home: Path, done: RunRecord, what: str
) -> None:
    refused_unchanged(home, "done", *(OTHER | LENGTH)[what])


@pytest.mark.parametrize("what", OTHER)
def test_another_config_in_the_folder_of_an_unfinished_run_is_refused_and_changes_nothing(
    home: Path, done: RunRecord, what: str
) -> None:
    unfinished(home, f"unfinished-{what}")
    refused_unchanged(home, f"unfinished-{what}", *OTHER[what])


def refused_unchanged(home: Path, name: str, changes: dict[str, Any], shown: str) -> None:
    before = contents(home / "runs" / name)
    with pytest.raises(ConfigError, match=r"holds .* with another config") as error:
        train(tiny(home, name=name, **({"eval__every": 5} | changes)))
    assert shown in str(error.value) and "name=" in str(error.value) and "\n" not in str(error.value)
    assert contents(home / "runs" / name) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": "never"}, "already holds a run and resume=never"),
        ({"steps": 4}, "has done 12 steps, more than the 4"),
    ],
)
def test_a_start_that_cannot_go_on_is_refused(
    home: Path, done: RunRecord, changes: dict[str, Any], message: str
) -> None:
    name = f"refused-{next(iter(changes))}"
    unfinished(home, name)
    with pytest.raises(ConfigError, match=message):
        train(tiny(home, name=name, **changes))


@pytest.mark.fault("F25")
def test_a_run_is_not_continued_on_a_corpus_that_has_changed(home: Path, done: RunRecord) -> None:
    unfinished(home, "changed")
    text = home / "text.txt"
    whole = text.read_text(encoding="utf-8")
    try:
        text.write_text(whole + "one more line\n", encoding="utf-8")
        with pytest.raises(DataError, match="made with another corpus"):
            train(tiny(home, name="changed"))
    finally:
        text.write_text(whole, encoding="utf-8")


# ---- length, size and batch


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


# ---- precision, compilation, numbers


def test_bf16_is_chosen_on_a_cpu_with_instructions_for_it_alone() -> None:
    """oneDNN says yes wherever there is AVX512, and is then five times slower than in float32."""
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        pytest.skip("reads the flags of an x86 CPU from /proc/cpuinfo")
    flags = set(next(line for line in info.read_text().splitlines() if line.startswith("flags")).split())
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    assert Trainer(accelerator="cpu").chosen_precision() == expected


def test_bf16_runs_where_hardware_has_none(home: Path) -> None:
    record = train(tiny(home, name="bf16", trainer__precision="bf16", steps=2, seq_len=64))
    assert record is not None and record.precision == "bf16"
    assert all(
        torch.float32 == t.dtype
        for t in load(find(home / "runs" / "bf16")).tensors["model"].values()  # type: ignore[arg-type]
    )
    first = metrics(home / "runs" / "bf16")[0]["loss"]
    assert first == pytest.approx(math.log(272), rel=0.1)  # of a model that knows nothing


@pytest.mark.slow
def test_a_compiled_run_is_the_run(home: Path) -> None:
    changes: dict[str, Any] = {"seq_len": 64, "steps": 6}
    train(tiny(home, name="eager", **changes))
    # a process of its own: the shape checks of tests wrap what would be compiled
    words = overrides(home, name="compiled", trainer__compile=True, **changes)
    done = subprocess.run([sys.executable, "train.py", *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    for a, b in zip(*(metrics(home / "runs" / name) for name in ("eager", "compiled")), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    eager, compiled = (
        llmtrain.load(home / "runs" / name).model.state_dict() for name in ("eager", "compiled")
    )
    assert eager.keys() == compiled.keys()


def test_numbers_that_are_not_finite_end_a_run_before_anything_is_written(
    home: Path, done: RunRecord
) -> None:
    path = find(home / "runs" / "done")
    assert path is not None
    state = load(path)
    next(iter(state.tensors["model"].values()))[0, 0] = math.inf
    poisoned = home / "runs" / "poisoned"
    shutil.copytree(home / "runs" / "done", poisoned)
    shutil.rmtree(poisoned / "checkpoints")
    save(poisoned, STEPS, state)
    with pytest.raises(NumbersError, match=r"lower optim\.lr") as error:
        train(tiny(home, name="heir", init_from="poisoned", init_state="weights"))
    assert "\n" not in str(error.value) and error.value.exit_code == 4
    assert metrics(home / "runs" / "heir") == []
    assert not (home / "runs" / "heir" / "checkpoints").exists()
    assert not (home / "runs" / "heir" / "record.json").exists()


def test_every_checkpoint_of_a_run_that_blew_up_is_finite(home: Path) -> None:
    blown = tiny(
        home, name="blown", optim__lr=1e37, optim__clip="null", checkpoint__every=1, checkpoint__keep_last=9
    )
    with pytest.raises(NumbersError):
        train(blown)
    for path in (blown.folder / "checkpoints").glob("step-*"):
        tensors = load(path).tensors
        assert all(t.isfinite().all() for group in ("model", "optimizer") for t in tensors[group].values())


def test_steps_that_are_not_finite_can_be_passed_over(home: Path, done: RunRecord) -> None:
    record = train(
        tiny(home, name="skips", guard__on_nonfinite="skip", optim__lr=1e37, optim__clip="null", steps=6)
    )
    assert record is not None and record.steps == 6
    updated = [row["updated"] for row in metrics(home / "runs" / "skips") if "loss" in row]
    assert updated[0] and not all(updated)


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


def test_held_out_rows_are_the_same_whatever_the_seed(home: Path, done: RunRecord) -> None:
    one, other = (ready(tiny(home, seed=seed)).held_out[SCORE].rows for seed in (0, 1))
    assert one.n_rows == other.n_rows
    for i in range(one.n_rows):
        assert all(np.array_equal(a, b) for a, b in zip(one[i], other[i], strict=True))
    assert train(tiny(home, name="seed1", seed=1, steps=1)).score.eval_hash == done.score.eval_hash  # type: ignore[union-attr]


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


# ---- other destinations of the metrics


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
