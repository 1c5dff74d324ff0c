"""All yardsticks on features, from held-out files to rows: the same twice, baselines beside, overlaps dropped."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from llmtrain.evaluation.base import Document, HeldOutTexts, Measured
from llmtrain.evaluation.feature_settings import FeatureYardsticks, FineTuning, Labelled, Probing
from llmtrain.evaluation.tasks import MIN_ITEMS, Tasks, texts_of
from llmtrain.evaluation.yardsticks import baseline_yardsticks, feature_tasks, feature_yardsticks
from tests.subjects import OBJECTIVES, TOKENIZER, subject_of

LIBRARY = Path(sysconfig.get_path("stdlib"))
FILES = [
    "json/decoder",
    "json/encoder",
    "json/tool",
    "email/header",
    "email/message",
    "email/utils",
    "heapq",
    "csv",
    "shlex",
]
SMALL = FeatureYardsticks(
    train_items=40,
    dev_items=24,
    test_items=24,
    candidates=24,
    windows=24,
    poolings=("mean", "last"),
    probing=Probing(C=(0.1, 1.0)),
    fine_tuning=FineTuning(steps=3, rows=4, tokens=16, rates=(1e-3,)),
)


@pytest.fixture(scope="module")
def texts() -> HeldOutTexts:
    documents = [
        Document(f"{name}.py", (LIBRARY / f"{name}.py").read_text(encoding="utf-8")) for name in FILES
    ]
    return HeldOutTexts(*(tuple(documents[i::3]) for i in range(3)))


@pytest.fixture(scope="module")
def tasks(texts) -> Tasks:
    return feature_tasks(texts, SMALL, training=())


def flat(rows: list[Measured]) -> list[object]:
    """Rows as plain data, to be compared to the bit."""
    return [
        [
            value.tobytes() if isinstance(value, np.ndarray) else value
            for value in (*row[:7], *(row.items or ()), *row[8:])
        ]
        for row in rows
    ]


@pytest.mark.parametrize("objective", ["clm", "contrastive"])
def test_scored_twice_a_model_has_the_same_numbers_to_the_bit(tasks, objective):
    first, second = (feature_yardsticks(subject_of(objective), tasks, SMALL) for _ in range(2))
    assert flat(first) == flat(second)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_kind_of_model_has_every_row(tasks, objective):
    rows = feature_yardsticks(subject_of(objective), tasks, SMALL)
    assert not tasks.left_out
    assert {row.yardstick for row in rows} == {
        "retrieval_docstring_to_function", "probe_name_role", "probe_text_kind", "retrieval_continuation",
        "probe_module", "fine_tuning_text_kind", "effective_rank",
    }  # fmt: skip
    assert len({(row.yardstick, row.metric) for row in rows}) == len(rows)
    for row in rows:
        assert np.isfinite(row.value)
        if row.items is not None:
            assert row.n == len(row.items.id) == len(row.items.value)
            assert row.value == pytest.approx(row.items.value.mean())
        if "continuation" in row.yardstick or "module" in row.yardstick:
            assert not row.summary and "contrastive" in row.note


def test_baselines_have_the_items_of_the_models(tasks):
    model = {(r.yardstick, r.metric): r for r in feature_yardsticks(subject_of("clm"), tasks, SMALL)}
    baselines = baseline_yardsticks(TOKENIZER, 32, tasks, SMALL)
    assert set(baselines) == {"random_vectors", "tf_idf", "unigram", "length", "bm25"}
    for name, rows in baselines.items():
        assert {r.yardstick for r in rows} >= {"retrieval_docstring_to_function"}
        assert ("probe_name_role" in {r.yardstick for r in rows}) == (name != "bm25")
        for row in rows:
            other = model[row.yardstick, row.metric]
            assert row.n == other.n and row.chance == other.chance
            assert (row.items is None) == (other.items is None)
            assert row.items is None or other.items is None or row.items.id == other.items.id


def test_items_that_share_text_with_training_are_dropped_and_counted(texts, tasks):
    known = texts.test[0]
    without = feature_tasks(texts, SMALL, training=[known.text])
    for before, after in zip(tasks.tasks, without.tasks, strict=False):
        if before.name != after.name:
            continue
        kept = {item.id for item in after.test}
        long = [
            item for item in before.test if item.group == known.file and min(map(len, _texts(item))) >= 120
        ]
        assert not kept & {item.id for item in long}
        assert f"{len(before.test) - len(after.test)} of {len(before.test)} test items dropped" in after.note
    everything = feature_tasks(texts, SMALL, training=[d.text for part in texts for d in part])
    assert "docstring_to_function" not in {task.name for task in everything.tasks}
    assert str(MIN_ITEMS) in everything.left_out["docstring_to_function"]


def _texts(item) -> list[str]:
    return [item.input.text] if hasattr(item, "input") else [item.first, item.second]


def test_a_corpus_without_python_leaves_its_yardsticks_out(texts):
    prose = [Document(f"{i}.txt", " ".join(f"word{i}{j}" for j in range(4000))) for i in range(6)]
    tasks = feature_tasks(HeldOutTexts(*(tuple(prose[i::3]) for i in range(3))), SMALL, training=())
    assert {task.name for task in tasks.tasks} <= {"continuation"}
    assert tasks.left_out["name_role"] == f"its train split has 0 items, and needs {MIN_ITEMS}"


def test_wrong_settings_are_told_with_the_way_out():
    with pytest.raises(ValueError, match="two yardsticks are called module"):
        FeatureYardsticks(labelled=(Labelled(name="module", train="a.jsonl"),))
    with pytest.raises(ValueError, match=r"fine_tuning.tasks has name_role.*choose from text_kind, module"):
        FeatureYardsticks(fine_tuning=FineTuning(tasks=("name_role",)))


def test_all_texts_of_a_task_are_checked_for_overlap(tasks):
    for task in tasks.tasks:
        assert set(texts_of(task)) >= {text for item in task.test for text in _texts(item)}
