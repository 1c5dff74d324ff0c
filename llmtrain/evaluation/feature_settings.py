"""What is asked of frozen features, as YAML gives it."""

from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import PositiveFloat, PositiveInt

from llmtrain.config import config

Pooling = Literal["mean", "last", "first", "max"]
Some = Annotated[tuple[PositiveFloat, ...], MinLen(1)]
Made = Literal["docstring_to_function", "name_role", "text_kind", "continuation", "module"]


@config
class Probing:
    """Logistic regressions, whose penalty dev chooses."""

    C: Some = (0.01, 0.1, 1.0, 10.0)  # inverse strengths of the L2 penalty
    max_steps: PositiveInt = 200  # of L-BFGS


@config
class FineTuning:
    """The same for every model: so many steps of so many texts at each rate, of which dev chooses one."""

    tasks: tuple[str, ...] = ("text_kind",)  # classifications of whole texts, by name
    steps: PositiveInt = 40
    rows: PositiveInt = 16
    tokens: PositiveInt = 64  # of a text, at most, BOS included
    rates: Some = (1e-3, 3e-3)  # of AdamW, falling linearly to zero


@config
class Labelled:
    """Texts with a label. A split that is not named is a part of the training set, by the hash of its rows' groups."""

    name: str
    train: str  # .jsonl, .json (lines), .csv or .tsv, perhaps .gz, .xz or .zst; else a data set: NAME[:CONFIG]@SPLIT
    dev: str | None = None
    test: str | None = None
    text: str = "text"
    label: str = "label"
    group: str | None = None  # a field that rows of one kind share: no split parts them; none: each is alone
    drop: tuple[str, ...] = ()  # labels that are left out
    train_items: PositiveInt = 2000
    test_items: PositiveInt = 2000  # of dev and of test


@config
class Graded:
    """Pairs of texts with a similarity that people gave them."""

    name: str
    dev: str  # as in Labelled
    test: str
    first: str = "s1"
    second: str = "s2"
    score: str = "score"
    test_items: PositiveInt = 2000


@config
class FeatureYardsticks:
    corpus: tuple[Made, ...] = (
        "docstring_to_function",
        "name_role",
        "text_kind",
        "continuation",
        "module",
    )  # of it
    labelled: tuple[Labelled, ...] = ()
    graded: tuple[Graded, ...] = ()
    poolings: tuple[Pooling, ...] = ("mean", "last", "first", "max")  # from which dev chooses
    probing: Probing = Probing()
    fine_tuning: FineTuning | None = FineTuning()
    window_bytes: Annotated[int, Ge(64)] = 256  # of a window of a held-out file
    train_items: PositiveInt = 1000  # of a task that is made of the corpus, at most
    dev_items: PositiveInt = 300
    test_items: PositiveInt = 600
    candidates: PositiveInt = 1000  # functions among which a docstring's is sought
    windows: Annotated[int, Ge(4)] = 300  # on which representations are compared with one another

    def __post_init__(self) -> None:
        names = [*self.corpus, *(one.name for one in self.labelled), *(one.name for one in self.graded)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two yardsticks are called {twice[0]}: give each a name of its own")
        if "mean" not in self.poolings:
            raise ValueError(
                f"poolings={list(self.poolings)} is without mean, by which representations are compared with one "
                "another: add it"
            )
        wrong = sorted(set(self.fine_tuning.tasks if self.fine_tuning else ()) - set(self._tunable))
        if wrong:
            raise ValueError(
                f"fine_tuning.tasks has {wrong[0]}, which is no classification of whole texts here: choose from "
                f"{', '.join(self._tunable) or 'nothing'}, or set fine_tuning=null"
            )

    @property
    def _tunable(self) -> list[str]:
        return [name for name in ("text_kind", "module") if name in self.corpus] + [
            one.name for one in self.labelled
        ]
