"""From the words of a command line to a comparison: those that begin with ``comparison`` are its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from llmtrain.compare.settings import Contest
from llmtrain.compose import compose
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError
from llmtrain.overrides import parse
from llmtrain.sweep.load import asked_in

# what a series may not have of its own, since all are compared on it
_SHARED = ("data", "tokenizer", "seq_len", "seed", "seed_data", "seed_init", "trainer.precision")


def contest_from(words: Sequence[str]) -> Contest:
    """The comparison that a command line describes; the words for train.py are checked too.

    Raises ConfigError in one line for whatever cannot work.
    """
    contest, common = asked_in(words, "comparison", Contest)
    contest = dataclasses.replace(contest, common=(*contest.common, *common))
    for name, own in contest.series.items():
        for key in (override.key for override in parse(own, {})):
            if any(f"{key}.".startswith(f"{shared}.") for shared in _SHARED):
                raise ConfigError(
                    f"comparison.series.{name}: {key} must be the same for all series: put it among the common words"
                )
    composed = {name: compose(words_of(contest, own)) for name, own in contest.series.items()}
    for name, plain in composed.items():
        for key in _SHARED:  # an experiment among a series' own words brings whole groups with it
            if OmegaConf.select(plain, key) != OmegaConf.select(composed[contest.baseline], key):
                raise ConfigError(
                    f"comparison.series.{name}: {key} is not that of {contest.baseline}, and must be the same for all "
                    f"series: put {key}, or the experiment that brings it, among the common words"
                )
    return contest


def words_of(contest: Contest, own: Sequence[str]) -> list[str]:
    """The words of train.py of a series, all but depth, width and length; what is held out is not in its data."""
    aside: Any = to_plain(contest.held_out.texts)
    given = "{" + ", ".join(f"{key}: {value}" for key, value in aside.items()) + "}"
    components = compose(contest.common)["data"].get("components")
    corpora = ["data"] if components is None else [f"data.components.{name}" for name in components]
    return [*contest.common, *(f"{corpus}.set_aside={given}" for corpus in corpora), *own]
