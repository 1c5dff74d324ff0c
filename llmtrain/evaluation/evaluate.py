"""What a user asks of one run: our own tasks by name, and all others of the EleutherAI harness."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmtrain.errors import ConfigError
from llmtrain.evaluation.base import Document, HeldOutTexts, Measured
from llmtrain.evaluation.generation import generation_baselines, generation_tasks, generation_yardsticks
from llmtrain.evaluation.likelihood import likelihood_of
from llmtrain.evaluation.order0 import order0
from llmtrain.evaluation.perplexity import perplexity
from llmtrain.evaluation.settings import Evaluation, Generation, Yardstick
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.texts import texts_in

ON_TEXTS: tuple[Yardstick, ...] = ("suffix", "cloze", "pseudo_likelihood")
ON_FILES = ("perplexity", "minimal_pairs", "choice")
OURS = (*ON_TEXTS, *ON_FILES)

Numbers = list[tuple[str, Measured]]  # of the run or of a baseline, and what


def evaluate(subject: Subject, asked: Evaluation, validation: Callable[[], tuple[Document, ...]]) -> Numbers:
    """The numbers of each task; ``validation`` gives the run's own held-out documents, where no texts are named.

    Raises ConfigError for a task that the run cannot do, before any is done.
    """
    likelihood_of(subject)
    if "pseudo_likelihood" in asked.named and not subject.objective.fills:
        raise ConfigError(
            f"tasks=pseudo_likelihood is of masked models, and this run was trained with "
            f"{type(subject.objective).__name__}: leave it out"
        )
    of_files = [task for task in asked.named if task in ON_FILES]
    if len(of_files) > 1 or bool(of_files) != (asked.file is not None):
        raise ConfigError(
            f"tasks={list(asked.named)} and file={asked.file}: give file with one of {', '.join(ON_FILES)}, and with "
            "no more than one"
        )
    others = [task for task in asked.named if task not in OURS]
    numbers: Numbers = []
    if others:
        from llmtrain.evaluation.harness import harness

        numbers += [("run", one) for one in harness(subject, others, asked.harness)]
    if asked.file is not None:
        numbers += _on_file(subject, of_files[0], asked.file, asked)
    if on_texts := tuple(task for task in ON_TEXTS if task in asked.named):
        test = validation() if asked.texts is None else texts_in(asked.texts)
        numbers += _generation(subject, _only(asked.generation, *on_texts), test)
    return numbers


def _on_file(subject: Subject, task: str, file: str, asked: Evaluation) -> Numbers:
    if task != "perplexity":
        if not Path(file).is_file():
            raise ConfigError(f"file={file}: there is no such file")
        settings = (
            _only(asked.generation, "choice", choice=file)
            if task == "choice"
            else _only(asked.generation, "minimal_pairs", minimal_pairs=file)
        )
        return _generation(subject, settings, ())
    documents = texts_in(file)
    stride = asked.stride or subject.seq_len // 2
    found = perplexity(
        likelihood_of(subject), subject.tokenizer, documents, stride=stride, seq_len=subject.seq_len
    )
    numbers = [("run", one) for one in found]
    for name, baseline in order0(subject.tokenizer, documents).items():
        numbers += [(name, one) for one in baseline]
    return numbers


def _only(
    own: Generation, *yardsticks: Yardstick, minimal_pairs: str | None = None, choice: str | None = None
) -> Generation:
    """These yardsticks alone, with the files that they need and no others."""
    return replace(own, yardsticks=yardsticks, minimal_pairs=minimal_pairs, choice=choice)


def _generation(subject: Subject, settings: Generation, test: tuple[Document, ...]) -> Numbers:
    texts = HeldOutTexts(train=(), dev=(), test=test)
    tasks = generation_tasks(texts, settings)
    numbers = [("run", one) for one in generation_yardsticks(subject, tasks)]
    for name, baseline in generation_baselines(subject.tokenizer, tasks).items():
        numbers += [(name, one) for one in baseline]
    return numbers
