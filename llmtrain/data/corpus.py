"""The `data` group of the config: a corpus is a source with the rules that make rows of it; a mix, several."""

import math
from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt

from llmtrain.config import config, free
from llmtrain.data.sources.base import Source
from llmtrain.data.sources.text import TextFiles
from llmtrain.errors import ConfigError


def _sources(named: Any) -> Any:
    """Paths in the place of a source are those of text files."""
    if not isinstance(named, dict):
        return named
    return {name: _source(given) for name, given in named.items()}


def _source(given: Any) -> Any:
    if isinstance(given, str):
        return TextFiles(paths=given)
    return TextFiles(paths=tuple(given)) if isinstance(given, list | tuple) else given


# further validation sets by name: scored beside the corpus' own validation part, and never trained on
NamedSources = Annotated[dict[str, Source], BeforeValidator(_sources)]


@config
class SetAside:
    """Texts of a source that no run trains or validates on: models are compared on them."""

    share: Annotated[float, Gt(0), Lt(1)] = 0.15
    by: Literal["file", "document"] = "file"  # document: where a file holds many, as JSON lines do


@config
class Corpus:
    """One source of text and what is done to it before training.

    Validation gets the larger of ``validation_fraction`` and ``validation_min_bytes``, where that is no more than a
    tenth of the corpus, and at most 10 MB; or what the source itself holds out. Sizes are bytes of UTF-8.
    """

    source: Source
    section_bytes: int = 65_536  # a longer document is cut at lines; each section is a document from there on
    validation_fraction: float = 0.01
    validation_min_bytes: int = 200_000
    validation_bytes_per_file: int = 32_768  # of one document, unless there are too few documents
    near_duplicate: float = (
        0.3  # share of common 4-line windows above which two texts stay on one side; 1 = off
    )
    deduplicate: bool = True  # drop exact copies of a document
    max_bytes: int | None = None  # read no more than this of the source
    set_aside: SetAside | None = None
    held_out: NamedSources = field(default_factory=dict)
    isolate_documents: bool = True  # no attention from one document of a row to another
    cache: str = free("cache")  # folder of prepared corpora
    workers: int | None = free(None)  # processes that tokenize; None = one a core
    loader_workers: int = free(0)  # processes that read rows while training

    def __post_init__(self) -> None:
        at_least = {
            "section_bytes": 1024,
            "validation_min_bytes": 0,
            "validation_bytes_per_file": 1024,
            "max_bytes": 1,
            "workers": 1,
            "loader_workers": 0,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"data.{name}={value} is too small; it must be at least {least}")
        if not 0 <= self.validation_fraction <= 0.5:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} must be between 0 and 0.5 (a share of the bytes)"
            )
        if not 0 < self.near_duplicate <= 1:
            raise ConfigError(
                f"data.near_duplicate={self.near_duplicate} must be above 0 and at most 1 (1 turns the rule off)"
            )
        _check_names("held_out", self.held_out)


# fields that are no part of what is prepared of the source: how it is read, where and how fast it is prepared, and
# what is scored besides; of a mix, they are set for all components
OUTSIDE = ("held_out", "isolate_documents", "cache", "workers", "loader_workers")


@config
class Mix:
    """Several corpora, each prepared by its own rules, under one tokenizer; ``weights`` are shares of the tokens.

    How rows are read, and where and how fast the corpora are prepared, is set here and for all of them.
    """

    components: dict[str, Corpus]
    weights: dict[str, float]  # by component; scaled to sum to 1
    held_out: NamedSources = field(default_factory=dict)
    isolate_documents: bool = True
    cache: str = free("cache")
    workers: PositiveInt | None = free(None)
    loader_workers: NonNegativeInt = free(0)

    def __post_init__(self) -> None:
        if not self.components:
            raise ConfigError("data.components is empty; name at least one corpus")
        if self.components.keys() != self.weights.keys():
            raise ConfigError(
                f"data.weights names {_listed(self.weights)}, but data.components names {_listed(self.components)}; "
                "give each component one weight"
            )
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(
                    f"data.weights.{name}={weight} must be above 0; leave the component out instead"
                )
        _check_names("components", self.components)
        _check_names("held_out", self.held_out)
        for name, corpus in self.components.items():
            untouched = Corpus(source=corpus.source)
            for key in OUTSIDE:
                if getattr(corpus, key) != getattr(untouched, key):
                    raise ConfigError(f"data.components.{name}.{key} has no effect in a mix; set data.{key}")


def _check_names(key: str, names: Iterable[str]) -> None:
    for name in names:
        if not name.replace("-", "_").isidentifier():
            raise ConfigError(f"data.{key}.{name}: use letters, digits, - and _ only, as it names a folder")
        if key == "held_out" and (name == "validation" or name.startswith("validation_")):
            raise ConfigError(
                f"data.held_out.{name}: the corpus' own validation part is called so; choose another name"
            )


def _listed(names: dict) -> str:
    return ", ".join(sorted(names)) or "nothing"
