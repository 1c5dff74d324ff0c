"""What is asked of a model's likelihoods, as YAML gives it."""

from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from llmtrain.config import config

Yardstick = Literal["suffix", "pseudo_likelihood", "cloze", "minimal_pairs", "choice"]


@config
class Generation:
    """Yardsticks of generation: on held-out texts, and on files of one's own."""

    yardsticks: tuple[Yardstick, ...] = ("suffix", "pseudo_likelihood", "cloze")
    windows: PositiveInt = 100  # of held-out text, at most
    window_bytes: Annotated[int, Ge(16)] = 256  # the first half is given, the second is scored
    pseudo_windows: PositiveInt = 20  # of them, for pseudo_likelihood
    cloze_items: PositiveInt = 60  # at most
    cloze_candidates: Annotated[int, Ge(2)] = 100  # the true ending among them
    context_bytes: PositiveInt = 96  # before an ending, about
    minimal_pairs: str | None = None  # JSON lines {good, bad, uid}
    pairs_per_paradigm: PositiveInt | None = None  # the first ones; none: all
    choice: str | None = None  # JSON lines {q, choices, label}

    def __post_init__(self) -> None:
        for name in ("minimal_pairs", "choice"):
            if (name in self.yardsticks) != (getattr(self, name) is not None):
                raise ValueError(
                    f"yardsticks={list(self.yardsticks)} and {name}={getattr(self, name)}: give the file of {name}, "
                    "and name it among the yardsticks, or neither"
                )


@config
class Harness:
    """Of tasks of lm-eval, the EleutherAI harness."""

    limit: PositiveInt | None = None  # questions of each task, the first ones
    num_fewshot: NonNegativeInt | None = None  # none: the task's own
    include_path: str | None = None  # a folder with tasks of one's own


@config
class Evaluation:
    """What scripts/evaluate.py measures of a run."""

    tasks: str | tuple[str, ...] = ("suffix", "cloze")  # ours and those of lm-eval, by name
    file: str | None = None  # of perplexity (text), minimal_pairs or choice (JSON lines)
    texts: str | tuple[str, ...] | None = (
        None  # of suffix, cloze, pseudo_likelihood; none: the run's validation
    )
    stride: PositiveInt | None = None  # tokens of perplexity scored at a time; none: half of seq_len
    generation: Generation = Generation()
    harness: Harness = Harness()
    step: int | None = None  # of the checkpoint; none: the newest
    out: str | None = None  # the folder of evaluation.json; none: the run's

    @property
    def named(self) -> tuple[str, ...]:
        return (self.tasks,) if isinstance(self.tasks, str) else self.tasks
