"""What every contestant is put to: yardsticks of features and of generation, made once for all of them."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain

import numpy as np
from jaxtyping import Float

from llmtrain.compare.load import words_of
from llmtrain.compare.saved import Overlap, Whose
from llmtrain.compare.settings import Contest
from llmtrain.compare.texts import held_out_texts
from llmtrain.compose import run_from
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.evaluation.base import Measured
from llmtrain.evaluation.generation import generation_baselines, generation_tasks, generation_yardsticks
from llmtrain.evaluation.geometry import top_features
from llmtrain.evaluation.overlap import training_texts
from llmtrain.evaluation.readers import ModelReader
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.yardsticks import baseline_yardsticks, feature_tasks, feature_yardsticks


class Yardsticks:
    """Of one comparison."""

    def __init__(self, contest: Contest) -> None:
        run = run_from(words_of(contest, contest.series[contest.baseline]))  # all have its data and tokenizer
        self._contest, self._prepared = contest, prepare(run.data, run.tokenizer)
        self.texts = held_out_texts(run.data, contest.held_out)
        self._tasks = feature_tasks(self.texts, contest.features, _training(self._prepared))
        self._generation = generation_tasks(self.texts, contest.generation, _training(self._prepared))

    @property
    def left_out(self) -> dict[str, str]:
        """Tasks that were asked for and cannot be had of these texts, with why."""
        return self._tasks.left_out

    @property
    def asked(self) -> str:
        """A hash of all that models are asked and of the tokenizer: of texts and files as they are today."""
        made_of = (self._tasks, self._generation, self._prepared.fingerprint, self._prepared.tokenizer.hash)
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @property
    def overlap(self) -> dict[str, Overlap]:
        """With training text, by yardstick."""
        found = self._tasks.overlap | self._generation.overlap
        return {name: Overlap(items=n, dropped=dropped) for name, (dropped, n) in found.items()}

    def of(self, subject: Subject) -> list[Measured]:
        return [
            *feature_yardsticks(subject, self._tasks, self._contest.features),
            *generation_yardsticks(subject, self._generation),
        ]

    def features(self, subject: Subject) -> Float[np.ndarray, "N D"]:
        """Of running text, the same for all models: how alike they are is told from these."""
        reader = ModelReader(subject, self._contest.features.poolings)
        return top_features(reader, self._tasks.windows)

    def baselines(self, width: int) -> list[tuple[Whose, Measured]]:
        """What needs no model; ``width`` is that of the models."""
        tokenizer = self._prepared.tokenizer
        of_features = baseline_yardsticks(tokenizer, width, self._tasks, self._contest.features)
        of_generation = generation_baselines(tokenizer, self._generation)
        return [
            (Whose(series=name, role="baseline"), one)
            for name, found in chain(of_features.items(), of_generation.items())
            for one in found
        ]


def _training(prepared: Prepared) -> Iterator[str]:
    return chain.from_iterable(training_texts(part.shards, prepared.tokenizer) for part in prepared.train)
