"""All yardsticks of generation for one model, and for the baselines that it is held against."""

from collections.abc import Iterator
from pathlib import Path

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.evaluation.base import HeldOutTexts, Measured
from llmtrain.evaluation.baselines import Uniform, unigram
from llmtrain.evaluation.choice import choice, read_questions
from llmtrain.evaluation.cloze import cloze
from llmtrain.evaluation.endings import Cloze, cloze_items
from llmtrain.evaluation.likelihood import Likelihood, likelihood_of
from llmtrain.evaluation.minimal_pairs import by_likelihood, minimal_pairs, pseudo_minimal_pairs, read_pairs
from llmtrain.evaluation.pseudo import pseudo_likelihood
from llmtrain.evaluation.settings import Generation
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.suffix import suffix
from llmtrain.evaluation.windows import Window, windows


def has_likelihood(subject: Subject) -> bool:
    return subject.objective.fills or subject.objective.beginning((0,)) is not None


def generation_yardsticks(subject: Subject, texts: HeldOutTexts, settings: Generation) -> list[Measured]:
    """What ``settings`` asks for, on the test documents of ``texts``; nothing of a model without a likelihood.

    Pseudo-likelihoods are of masked models alone. The same model gives the same numbers every time.
    """
    if not has_likelihood(subject):
        return []
    found = list(_common(likelihood_of(subject), subject.tokenizer, texts, settings))
    if subject.objective.fills:
        if "pseudo_likelihood" in settings.yardsticks:
            found.append(pseudo_likelihood(subject, _windows(texts, settings, settings.pseudo_windows)))
        if settings.minimal_pairs is not None:
            pairs = read_pairs(Path(settings.minimal_pairs), settings.pairs_per_paradigm)
            found += pseudo_minimal_pairs(subject, pairs)
    return found


def generation_baselines(
    tokenizer: Tokenizer, texts: HeldOutTexts, settings: Generation
) -> dict[str, list[Measured]]:
    """By name. ``length`` holds all tokens for alike; ``unigram`` knows their frequencies in the train documents."""
    trained = unigram(tokenizer, [document.text for document in texts.train])
    baselines = {"length": Uniform(tokenizer.vocab_size), "unigram": trained}
    return {name: list(_common(one, tokenizer, texts, settings)) for name, one in baselines.items()}


def _common(
    likelihood: Likelihood, tokenizer: Tokenizer, texts: HeldOutTexts, settings: Generation
) -> Iterator[Measured]:
    """The yardsticks that every likelihood has."""
    if "suffix" in settings.yardsticks:
        yield suffix(likelihood, tokenizer, _windows(texts, settings, settings.windows))
    if "cloze" in settings.yardsticks:
        yield from cloze(likelihood, tokenizer, _endings(texts, settings))
    if settings.minimal_pairs is not None:
        pairs = read_pairs(Path(settings.minimal_pairs), settings.pairs_per_paradigm)
        yield from minimal_pairs(by_likelihood(likelihood), tokenizer, pairs, note=likelihood.note)
    if settings.choice is not None:
        yield from choice(likelihood, tokenizer, read_questions(Path(settings.choice)))


def _windows(texts: HeldOutTexts, settings: Generation, most: int) -> list[Window]:
    return windows(texts.test, settings.window_bytes, most)


def _endings(texts: HeldOutTexts, settings: Generation) -> list[Cloze]:
    return cloze_items(
        texts.test,
        (*texts.train, *texts.dev, *texts.test),
        most=settings.cloze_items,
        n_candidates=settings.cloze_candidates,
        context_bytes=settings.context_bytes,
    )
