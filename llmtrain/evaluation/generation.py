"""All yardsticks of generation for one model, and for the baselines that it is held against."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import DataError
from llmtrain.evaluation.base import HeldOutTexts, Measured
from llmtrain.evaluation.baselines import Uniform, unigram
from llmtrain.evaluation.choice import Question, choice, read_questions
from llmtrain.evaluation.cloze import cloze
from llmtrain.evaluation.endings import Cloze, clozes
from llmtrain.evaluation.likelihood import Likelihood, likelihood_of
from llmtrain.evaluation.minimal_pairs import (
    Pair,
    by_likelihood,
    minimal_pairs,
    pseudo_minimal_pairs,
    read_pairs,
)
from llmtrain.evaluation.overlap import LENGTH, shared
from llmtrain.evaluation.pseudo import pseudo_likelihood
from llmtrain.evaluation.settings import Generation
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.suffix import suffix
from llmtrain.evaluation.tasks import at_most
from llmtrain.evaluation.windows import Window, windows

One = TypeVar("One")


class GenerationTasks(NamedTuple):
    """What is asked, the same for all models; what is not asked for is empty."""

    windows: tuple[Window, ...]
    pseudo_windows: tuple[Window, ...]
    endings: tuple[Cloze, ...]
    pairs: tuple[Pair, ...]
    questions: tuple[Question, ...]
    other: tuple[str, ...]  # texts that nothing is asked of
    overlap: dict[
        str, tuple[int, int]
    ]  # by yardstick: items that share text with the training text, of how many

    def note(self, yardstick: str) -> str:
        dropped, n = self.overlap.get(yardstick, (0, 0))
        return f"{dropped} of {n} items dropped: {LENGTH} characters of them stand in the training text"


def generation_tasks(
    texts: HeldOutTexts, settings: Generation, training: Iterable[str] | None = None
) -> GenerationTasks:
    """Items that share 50 characters with ``training`` are dropped; with none given, nothing is looked for.

    Raises ConfigError or DataError for texts or a file that cannot be used.
    """
    pairs, questions = list[Pair](), list[Question]()
    if settings.minimal_pairs is not None:
        pairs = read_pairs(Path(settings.minimal_pairs), settings.pairs_per_paradigm)
    if settings.choice is not None:
        questions = read_questions(Path(settings.choice))
    own = [d.text for d in texts.test] + [t for p in pairs for t in p[:2]] + [q.whole for q in questions]
    overlap = None if training is None else shared(own, training)

    def allowed(text: str) -> bool:
        return overlap is None or not overlap.hits(text)

    wanted, dropped = settings.yardsticks, dict[str, tuple[int, int]]()

    def kept(yardstick: str, items: Iterable[One], is_allowed: Callable[[One], bool]) -> list[One]:
        given = list(items)
        found = [item for item in given if is_allowed(item)]
        if overlap is not None:
            dropped[yardstick] = len(given) - len(found), len(given)
        if given and not found:
            raise DataError(
                f"every item of {yardstick} has {LENGTH} characters that stand in the training text"
            )
        return found

    found = windows(texts.test, settings.window_bytes) if {"suffix", "pseudo_likelihood"} & {*wanted} else []
    unseen = kept("suffix", found, lambda window: allowed(window.text))
    made = _clozes(texts, settings, allowed) if "cloze" in wanted else []
    return GenerationTasks(
        windows=at_most(unseen, settings.windows) if "suffix" in wanted else (),
        pseudo_windows=at_most(unseen, settings.pseudo_windows) if "pseudo_likelihood" in wanted else (),
        endings=tuple(
            make()
            for make in at_most(kept("cloze", made, lambda make: make is not None), settings.cloze_items)
            if make is not None
        ),
        pairs=tuple(kept("minimal_pairs", pairs, lambda pair: allowed(pair.good) and allowed(pair.bad))),
        questions=tuple(kept("choice", questions, lambda question: allowed(question.whole))),
        other=tuple(document.text for document in texts.train),
        overlap=dropped,
    )


def has_likelihood(subject: Subject) -> bool:
    return subject.objective.fills or subject.objective.beginning((0,)) is not None


def generation_yardsticks(subject: Subject, tasks: GenerationTasks) -> list[Measured]:
    """All that is asked of a model; nothing of one without a likelihood.

    Pseudo-likelihoods are of masked models alone. The same model gives the same numbers every time.
    """
    if not has_likelihood(subject):
        return []
    found = list(_common(likelihood_of(subject), subject.tokenizer, tasks))
    if subject.objective.fills:
        if tasks.pseudo_windows:
            found.append(_noted(pseudo_likelihood(subject, tasks.pseudo_windows), tasks, "suffix"))
        if tasks.pairs:
            own = pseudo_minimal_pairs(subject, tasks.pairs)
            found += [_noted(one, tasks, "minimal_pairs") for one in own]
    return found


def generation_baselines(tokenizer: Tokenizer, tasks: GenerationTasks) -> dict[str, list[Measured]]:
    """By name. ``length`` holds all tokens for alike; ``unigram`` knows how often they are in other held-out texts.

    Where there are no such texts there is no ``unigram``.
    """
    baselines: dict[str, Likelihood] = {"length": Uniform(tokenizer.vocab_size)}
    if tasks.other:
        baselines["unigram"] = unigram(tokenizer, tasks.other)
    return {name: list(_common(one, tokenizer, tasks)) for name, one in baselines.items()}


def _common(likelihood: Likelihood, tokenizer: Tokenizer, tasks: GenerationTasks) -> Iterator[Measured]:
    """The yardsticks that every likelihood has."""
    if tasks.windows:
        yield _noted(suffix(likelihood, tokenizer, tasks.windows), tasks, "suffix")
    if tasks.endings:
        for one in cloze(likelihood, tokenizer, tasks.endings):
            yield _noted(one, tasks, "cloze")
    if tasks.pairs:
        scores = by_likelihood(likelihood)
        for one in minimal_pairs(scores, tokenizer, tasks.pairs, note=likelihood.note):
            yield _noted(one, tasks, "minimal_pairs")
    if tasks.questions:
        for one in choice(likelihood, tokenizer, tasks.questions):
            yield _noted(one, tasks, "choice")


def _noted(measured: Measured, tasks: GenerationTasks, yardstick: str) -> Measured:
    """With how many items were dropped, where that was looked for."""
    if yardstick not in tasks.overlap:
        return measured
    return measured._replace(note="; ".join(filter(None, (measured.note, tasks.note(yardstick)))))


def _clozes(
    texts: HeldOutTexts, settings: Generation, allowed: Callable[[str], bool]
) -> list[Callable[[], Cloze] | None]:
    every = (*texts.train, *texts.dev, *texts.test)
    found = list(
        clozes(
            texts.test,
            every,
            n_candidates=settings.cloze_candidates,
            context_bytes=settings.context_bytes,
            allowed=allowed,
        )
    )
    if not found:
        n = settings.cloze_candidates - 1
        raise DataError(
            f"the held-out texts have no ending with {n} others as long that are more frequent, and as many that are "
            "less so: give more text, or fewer cloze_candidates"
        )
    return found
