"""Yardsticks on frozen features: what is asked of every model of a comparison, and of the baselines beside them."""

from collections.abc import Callable, Iterable, Iterator

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import HeldOutTexts, Measured
from llmtrain.evaluation.bm25 import bm25
from llmtrain.evaluation.docstrings import docstring_retrieval
from llmtrain.evaluation.feature_settings import FeatureYardsticks, Made
from llmtrain.evaluation.fine_tuning import fine_tune
from llmtrain.evaluation.geometry import measured_geometry
from llmtrain.evaluation.kinds import text_kinds
from llmtrain.evaluation.labelled import classification, similarity
from llmtrain.evaluation.names import name_roles
from llmtrain.evaluation.nearby import continuations, modules
from llmtrain.evaluation.overlap import LENGTH, shared
from llmtrain.evaluation.probe import probe
from llmtrain.evaluation.python_source import python_files
from llmtrain.evaluation.readers import Length, ModelReader, RandomVectors, Reader, TfIdf, Unigrams
from llmtrain.evaluation.retrieval import retrieve, retrieve_by
from llmtrain.evaluation.similarity import grade
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.tasks import (
    Classification,
    Retrieval,
    Task,
    Tasks,
    at_most,
    texts_of,
    too_small,
    windows_of,
    without,
)


def feature_tasks(texts: HeldOutTexts, cfg: FeatureYardsticks, training: Iterable[str]) -> Tasks:
    """What is asked, made once for all models: items that share 50 characters with ``training`` are dropped.

    Raises ConfigError or DataError, naming it, for a file that cannot be used.
    """
    made = list(_made(texts, cfg))
    overlap = shared((text for task in made for text in texts_of(task)), training)
    reason = f"{LENGTH} characters of them stand in the training text"
    kept = [without(task, overlap.hits, reason) for task in made]
    left_out = {task.name: why for task in kept if (why := too_small(task)) is not None}
    windows = [window for document in texts.test for _, window in windows_of(document.text, cfg.window_bytes)]
    return Tasks(
        tasks=tuple(task for task in kept if task.name not in left_out),
        windows=at_most(windows, cfg.windows),
        left_out=left_out,
        overlap={
            before.name: (len(before.test) - len(after.test), len(before.test))
            for before, after in zip(made, kept, strict=True)
        },
    )


def feature_yardsticks(subject: Subject, tasks: Tasks, cfg: FeatureYardsticks) -> list[Measured]:
    """All that is measured on the features of a model; the same subject gives the same numbers every time."""
    subject.model.eval()
    reader = ModelReader(subject, cfg.poolings)
    rows = [row for task in tasks.tasks for row in _asked(task, reader, cfg)]
    for task in _tuned(tasks, cfg):
        assert cfg.fine_tuning is not None, "else no task is tuned"
        rows += fine_tune(task, subject, cfg.fine_tuning)
    return rows + measured_geometry(reader, tasks.windows)


def baseline_yardsticks(
    tokenizer: Tokenizer, width: int, tasks: Tasks, cfg: FeatureYardsticks
) -> dict[str, list[Measured]]:
    """By name of a baseline its rows, on all tasks that it can do; the untrained models stand beside them.

    ``width`` is that of the models. Beside fine-tuning, a baseline stands as it is probed: it has nothing to tune.
    """
    readers: dict[str, Reader] = {
        "random_vectors": RandomVectors(tokenizer, width),
        "tf_idf": TfIdf(),
        "unigram": Unigrams(tokenizer),
        "length": Length(),
    }
    out = {name: [row for task in tasks.tasks for row in _asked(task, r, cfg)] for name, r in readers.items()}
    out["bm25"] = [
        row for task in tasks.tasks if isinstance(task, Retrieval) for row in retrieve_by(task, bm25)
    ]
    for rows in out.values():
        probed = {row.yardstick: row for row in reversed(rows) if row.metric == "accuracy"}
        rows += [
            probed[f"probe_{task.name}"]._replace(yardstick=f"fine_tuning_{task.name}", kind="fine_tuning")
            for task in _tuned(tasks, cfg)
            if f"probe_{task.name}" in probed
        ]
    return out


def _made(texts: HeldOutTexts, cfg: FeatureYardsticks) -> Iterator[Task]:
    files = python_files(texts)
    held_out = {"n_bytes": cfg.window_bytes, "dev": cfg.dev_items, "test": cfg.test_items}
    size = held_out | {"train": cfg.train_items}
    makers: dict[Made, Callable[[], Task]] = {
        "docstring_to_function": lambda: docstring_retrieval(files, cfg.candidates),
        "name_role": lambda: name_roles(files, **size),
        "text_kind": lambda: text_kinds(files, **size),
        "continuation": lambda: continuations(texts, **held_out),
        "module": lambda: modules(texts, **size),
    }
    yield from (makers[name]() for name in cfg.corpus)
    yield from (classification(one) for one in cfg.labelled)
    yield from (similarity(one) for one in cfg.graded)


def _asked(task: Task, reader: Reader, cfg: FeatureYardsticks) -> list[Measured]:
    if isinstance(task, Classification):
        return probe(task, reader, cfg.probing)
    return retrieve(task, reader) if isinstance(task, Retrieval) else grade(task, reader)


def _tuned(tasks: Tasks, cfg: FeatureYardsticks) -> list[Classification]:
    names = cfg.fine_tuning.tasks if cfg.fine_tuning else ()
    return [task for task in tasks.tasks if isinstance(task, Classification) and task.name in names]
