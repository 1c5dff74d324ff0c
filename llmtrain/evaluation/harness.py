"""Tasks of lm-eval, the EleutherAI harness, on a run: names checked, mistakes in one line, its numbers as ours."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.sources.hub import of_network
from llmtrain.errors import ConfigError, Unreachable
from llmtrain.evaluation.base import Items, Measured
from llmtrain.evaluation.settings import Harness
from llmtrain.evaluation.subject import Subject
from llmtrain.typos import did_you_mean, nearest


def harness(subject: Subject, tasks: Sequence[str], settings: Harness) -> list[Measured]:
    """What each task, or each of a group of them, measures.

    Raises ConfigError for a task that there is not, and for a run that does not go on from a text; Unreachable where a
    task's data are on a network that is not there.
    """
    said = " ".join(tasks)
    if subject.objective.beginning((0,)) is None:
        raise ConfigError(
            f"tasks={said}: lm-eval asks how a text goes on, which {type(subject.objective).__name__} does not learn: "
            "choose a run of clm, prefix_lm or denoising, or a task of ours (suffix, cloze, minimal_pairs, choice)"
        )
    try:
        import lm_eval
    except ImportError:
        raise ConfigError(
            f"tasks={said} is not one of ours, and lm-eval is not installed: pip install -e .[eval]"
        ) from None
    from llmtrain.evaluation.harness_model import HarnessModel

    _quiet()
    manager = _manager(tasks, settings.include_path)
    try:
        found = lm_eval.simple_evaluate(
            model=HarnessModel(subject),
            tasks=list(tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            bootstrap_iters=1000,  # 0 would leave out the standard errors of means too
            task_manager=manager,
        )
    except Exception as error:
        if not of_network(error):
            raise
        told = " ".join(str(error).split())[:200]
        raise Unreachable(
            f"tasks={said}: the data must come from the network, which cannot be reached ({told}); connect to it, or "
            "give a task whose data are files (harness.include_path)"
        ) from error
    return list(_measured(found))


def _manager(tasks: Sequence[str], folder: str | None) -> Any:
    """What knows all of ``tasks``: those in ``folder`` alone, if that is enough, since lm-eval's own are thousands."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigError(f"harness.include_path={folder}: there is no such folder")
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=folder)
    for task in tasks:
        if task not in manager.all_tasks:
            near = nearest(task, manager.all_tasks)
            raise ConfigError(
                f"there is no task {task}: {did_you_mean(near, ['suffix', 'cloze', 'lambada_openai'])}"
            )
    return manager


def _quiet() -> None:
    """What the libraries would say of a network that is not there, try by try, is in the error."""
    import datasets
    from huggingface_hub.utils import logging as of_hub

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    of_hub.set_verbosity(logging.CRITICAL)


def _measured(found: dict[str, Any]) -> Iterator[Measured]:
    for task, row in found["results"].items():
        samples = found.get("samples", {}).get(task, [])
        for key, value in row.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            se = row.get(f"{metric}_stderr,{how}")
            items = _items([s for s in samples if s["filter"] == how], metric, value)
            yield Measured(
                yardstick=f"lm_eval/{task}",
                kind="generation",
                split="test",
                metric=metric if how == "none" else f"{metric} ({how})",
                value=float(value),
                better="higher" if found["higher_is_better"].get(task, {}).get(metric, True) else "lower",
                n=len(samples) if samples else int(row.get("sample_len", 0)),
                items=items,
                item_se=float(se) if isinstance(se, int | float) else None,
            )


def _items(samples: Sequence[dict[str, Any]], metric: str, value: float) -> Items | None:
    """The answers one by one, where the number is their mean."""
    values = [sample.get(metric) for sample in samples]
    if not values or not all(isinstance(one, int | float) for one in values):
        return None
    names = tuple(str(sample["doc_id"]) for sample in samples)
    items = Items(names, names, np.array(values, np.float64))
    return items if np.isclose(items.value.mean(), value) else None
