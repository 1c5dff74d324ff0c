"""scripts/evaluate.py on whole runs: our tasks, those of lm-eval, and what is refused in one line."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import llmtrain
from llmtrain.evaluation.likelihood import Ask, likelihood_of
from llmtrain.evaluation.saved import ITEMS, NAME, read_evaluation
from llmtrain.evaluation.subject import Subject
from llmtrain.pretrain import train
from llmtrain.types import BOS
from scripts.evaluate import main
from tests.runs import pair, tiny, without_figures, write_text

FEW = [
    "generation.windows=4",
    "generation.cloze_items=4",
    "generation.cloze_candidates=5",
    "generation.window_bytes=32",
]
OBJECTIVES = ("clm", "mlm", "denoising", "contrastive")
harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install -e .[eval])"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    write_text(folder)
    made = {}
    with without_figures():
        for objective in OBJECTIVES:
            run = tiny(folder, name=objective, **pair(f"{objective}_dense") | {"seq_len": 64})
            train(run)
            made[objective] = run.folder
    return made


def evaluate(monkeypatch, capsys, run: Path, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(run), *words])
    code = main()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("objective", ["clm", "mlm", "denoising"])
def test_a_run_is_measured_on_its_validation_text_and_twice_the_same(
    runs, monkeypatch, capsys, tmp_path, objective
):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        code, out, err = evaluate(monkeypatch, capsys, runs[objective], *FEW, f"out={folder}")
        assert code == 0, err
        assert "suffix_bits_per_byte" in out and "cloze" in out
    for name in (NAME, ITEMS):
        a, b = ((folder / name).read_bytes() for folder in folders)
        assert a.replace(str(folders[0]).encode(), str(folders[1]).encode()) == b
    found = read_evaluation(folders[0] / NAME)
    assert {row.of for row in found.rows} == {"run", "length"}
    assert all(("bound" in row.note) == (objective == "mlm") for row in found.rows if row.of == "run")


def test_perplexity_of_a_file_stands_beside_its_own_frequencies(runs, monkeypatch, capsys, tmp_path):
    from pyarrow import parquet

    file = tmp_path / "some.txt"
    file.write_text("Some words of a text, and then some others.\n" * 20)
    code, _, err = evaluate(
        monkeypatch, capsys, runs["clm"], "tasks=perplexity", f"file={file}", f"out={tmp_path}"
    )
    assert code == 0, err
    rows = {(row.of, row.metric): row for row in read_evaluation(tmp_path / NAME).rows}
    assert set(rows) == {
        ("run", "perplexity"), ("run", "bits per byte"), ("unigram", "perplexity"),
        ("unigram", "bits per byte"), ("bytes", "bits per byte"),
    }  # fmt: skip
    items = parquet.read_table(tmp_path / ITEMS)
    value, weight = (items.column(name).to_numpy() for name in ("value", "weight"))
    assert weight.sum() == len(file.read_bytes())
    assert np.average(value, weights=weight) == pytest.approx(rows["run", "bits per byte"].value)


@pytest.mark.parametrize(
    ("objective", "words", "said"),
    [
        ("contrastive", ["tasks=suffix"], "trained with Contrastive gives no likelihood"),
        ("clm", ["tasks=pseudo_likelihood"], "is of masked models"),
        ("clm", ["tasks=perplexity"], "give file with one of perplexity, minimal_pairs, choice"),
        ("clm", ["tasks=choice", "file=nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        ("clm", ["task=suffix"], "did you mean evaluation.tasks"),
        ("clm", ["tasks=suffix", "texts=nowhere"], "nowhere: no such file or folder"),
        ("mlm", ["tasks=lambada_openai"], "which MaskedLM does not learn"),
    ],
)
def test_what_cannot_be_measured_is_one_line(runs, monkeypatch, capsys, objective, words, said):
    code, _, err = evaluate(monkeypatch, capsys, runs[objective], *words)
    assert code in (2, 3) and said in err and err.count("\n") == 1, err


def write_task(folder: Path, name: str, body: str, lines: list[dict]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (folder / f"{name}.yaml").write_text(text + body)


CHOICE = """output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""
UNTIL = """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@harness
@pytest.mark.parametrize("objective", ["clm", "denoising"])
def test_tasks_of_the_harness_give_what_the_likelihood_says(runs, monkeypatch, capsys, tmp_path, objective):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [{"q": f"def f{i}(", "choices": ["self", "x=1", "import"], "label": i % 3} for i in range(6)]
    texts = [{"text": "import os\n\n\ndef main():\n    pass\n" * n} for n in (1, 9)]
    tasks = {"some_choice": (CHOICE, questions), "some_text": (ROLLING, texts)}
    tasks["some_answers"] = (UNTIL, [{"q": "def main", "a": "()"}] * 2)
    for name, (body, lines) in tasks.items():
        write_task(tmp_path, name, body, lines)
    words = [f"tasks=[{','.join(tasks)}]", f"harness.include_path={tmp_path}", f"out={tmp_path / 'out'}"]
    code, _, err = evaluate(monkeypatch, capsys, runs[objective], *words)
    assert code == 0, err
    found = {row.yardstick: row for row in read_evaluation(tmp_path / "out" / NAME).rows}
    assert set(found) == {f"lm_eval/{name}" for name in tasks}
    loaded = llmtrain.load(runs[objective])
    subject = Subject(loaded.model, loaded.objective, loaded.tokenizer, loaded.config.seq_len)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(subject.tokenizer.encode(text).tolist())

    asks = [Ask((BOS, *ids(q["q"])), ids(f" {c}")) for q in questions for c in q["choices"]]  # type: ignore[attr-defined]
    nats = np.array([answer.nats.sum() for answer in likelihood_of(subject).answer(asks)]).reshape(6, 3)
    right = nats.argmin(1) == np.arange(6) % 3
    assert found["lm_eval/some_choice"].value == pytest.approx(right.mean())
    assert 0 < found["lm_eval/some_text"].value < 20
    assert found["lm_eval/some_answers"].n == 2


@harness
@pytest.mark.slow  # lm-eval reads its thousands of tasks
@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["tasks=lambada_opnai"], "did you mean lambada_openai", 2),
        (["tasks=lambada_openai"], "the data must come from the network", 75),
    ],
)
def test_a_task_that_cannot_be_had_is_one_line(runs, monkeypatch, capsys, tmp_path, words, said, code):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found, _, err = evaluate(monkeypatch, capsys, runs["clm"], *words)
    assert found == code and said in err and err.count("\n") == 1, err


def test_a_corpus_that_is_another_one_today_is_not_measured(runs, monkeypatch, capsys, tmp_path):
    """A file more moves what is validated on: part of it may have been trained on."""
    folder = tmp_path / "changed"
    folder.mkdir()
    text = write_text(folder)
    run = tiny(folder, name="clm", **pair("clm_dense") | {"seq_len": 64})
    with without_figures():
        train(run)
    text.write_text(text.read_text(encoding="utf-8")[:-5000], encoding="utf-8")
    code, _, err = evaluate(monkeypatch, capsys, run.folder, *FEW)
    assert code == 3
    assert "no longer the one that this run was trained on" in err and "texts=PATH" in err
    code, _, err = evaluate(monkeypatch, capsys, run.folder, *FEW, f"texts={text}")
    assert code == 0, err


def test_a_file_of_pairs_among_the_settings_does_not_disturb_other_tasks(runs, monkeypatch, capsys, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"good": "a b", "bad": "", "uid": "order"}), encoding="utf-8")
    code, _, err = evaluate(monkeypatch, capsys, runs["clm"], "tasks=minimal_pairs", f"file={pairs}")
    assert code == 3 and "pair 1 has an empty sentence" in err
    given = ["generation.yardsticks=[minimal_pairs]", f"generation.minimal_pairs={pairs}"]
    code, out, err = evaluate(monkeypatch, capsys, runs["clm"], *FEW, *given, "tasks=suffix")
    assert code == 0 and "suffix" in out, err
