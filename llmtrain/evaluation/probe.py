"""Linear probes on frozen features: what can be read off them by a logistic regression."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llmtrain import philox
from llmtrain.evaluation.base import Items, Measured
from llmtrain.evaluation.feature_settings import Probing
from llmtrain.evaluation.features import Place
from llmtrain.evaluation.readers import Reader, Scaling, moments
from llmtrain.evaluation.standard_errors import resampled_error, standard_error
from llmtrain.evaluation.tasks import Classification, Example


class Chosen(NamedTuple):
    """What dev chose."""

    place: Place
    scaling: Scaling
    C: float
    dev: float  # accuracy there


class _Split(NamedTuple):
    x: dict[Place, Any]
    y: Int[np.ndarray, " N"]


def probe(task: Classification, reader: Reader, cfg: Probing) -> list[Measured]:
    """Accuracy, macro-F1 and selectivity on test, of the layer, pooling, scaling and penalty that are best on dev.

    Layer and pooling are chosen at the middle penalty, then the penalty there; the same of raw and of standardised
    features, whose accuracies are listed too. Raw ones are divided by one number, their root mean square in training,
    so that a penalty means the same at every layer. Selectivity (Hewitt and Liang 2019) is the accuracy less that of a
    probe of the same kind for control labels, drawn at random for each type.
    """
    parts = {"train": task.train, "dev": task.dev, "test": task.test}
    labels = sorted({example.label for example in task.train})
    known = [example.input for example in task.train]
    data = {
        name: _Split(reader.read([e.input for e in part], known), numbers([e.label for e in part], labels))
        for name, part in parts.items()
    }
    best = [_choose(data["train"], data["dev"], scaling, cfg) for scaling in reader.scalings]
    predictions = [_predicted(data, data["train"].y, chosen, cfg) for chosen in best]
    top = int(np.argmax([chosen.dev for chosen in best]))
    y, predicted, chosen = data["test"].y, predictions[top], best[top]
    control = {name: control_labels(part, task.train) for name, part in parts.items()}
    against = _predicted(data, control["train"], chosen, cfg) == control["test"]

    of = _Rows(task, chosen)
    right = (predicted == y).astype(np.float64)
    rows = [
        of.row("accuracy", right, chance=float((y == np.bincount(data["train"].y).argmax()).mean())),
        of.whole("macro_f1", lambda i: macro_f1(y[i], predicted[i]), chance=_majority_f1(data)),
        of.row("selectivity", right - against, chance=0.0),
    ]
    for scaling, other, found in zip(reader.scalings, best, predictions, strict=True):
        if len(best) > 1:
            same = _Rows(task, other)
            rows.append(
                same.row(f"accuracy, {scaling}", (found == y) * 1.0, chance=rows[0].chance, summary=False)
            )
    return rows


class _Rows(NamedTuple):
    """What the rows of one probe have in common."""

    task: Classification
    chosen: Chosen

    def row(self, metric: str, values: np.ndarray, *, chance: float | None, summary: bool = True) -> Measured:
        items = items_of(self.task.test, values)
        return self._measured(metric, float(values.mean()), chance, summary)._replace(
            items=items, item_se=standard_error(items)
        )

    def whole(self, metric: str, statistic: Callable[[np.ndarray], float], *, chance: float) -> Measured:
        value = statistic(np.arange(len(self.task.test)))
        groups = [e.group for e in self.task.test]
        error = resampled_error(statistic, groups)
        return self._measured(metric, value, chance, True)._replace(item_se=error, groups=len(set(groups)))

    def _measured(self, metric: str, value: float, chance: float | None, summary: bool) -> Measured:
        (layer, pooling), scaling, strength, _ = self.chosen
        return Measured(
            yardstick=f"probe_{self.task.name}",
            kind="features",
            split="test",
            metric=metric,
            value=value,
            better="higher",
            n=len(self.task.test),
            chance=chance,
            ceiling=1.0,
            summary=summary and self.task.summary,
            choices={"layer": layer, "pooling": pooling, "scaling": scaling, "C": strength},
            note=self.task.note,
        )


def items_of(test: Sequence[Example], values: Float[np.ndarray, " N"]) -> Items:
    return Items(tuple(e.id for e in test), tuple(e.group for e in test), values)


def numbers(labels: Sequence[str], known: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Places in ``known``; a label that training does not have is -1, which no probe can say."""
    place = {label: i for i, label in enumerate(known)}
    return np.array([place.get(label, -1) for label in labels])


def control_labels(examples: Sequence[Example], train: Sequence[Example]) -> Int[np.ndarray, " N"]:
    """For each type a label drawn from those of training, as often as they are there: the same in every split."""
    labels = sorted({example.label for example in train})
    shares = Counter(example.label for example in train)
    p = np.cumsum([shares[label] for label in labels]) / len(train)
    draws = {e.type: philox.generator(0, f"control label {e.type}").random() for e in examples}
    return np.array([min(int(np.searchsorted(p, draws[e.type])), len(labels) - 1) for e in examples])


def macro_f1(y: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"]) -> float:
    """The mean of the F1 of the labels that are in ``y``."""
    scores = []
    for label in np.unique(y):
        hit = np.sum((y == label) & (predicted == label))
        scores.append(2 * hit / (np.sum(y == label) + np.sum(predicted == label)))
    return float(np.mean(scores))


def _majority_f1(data: dict[str, _Split]) -> float:
    y = data["test"].y
    return macro_f1(y, np.full_like(y, np.bincount(data["train"].y).argmax()))


def _choose(train: _Split, dev: _Split, scaling: Scaling, cfg: Probing) -> Chosen:
    """The first of the best, so that ties are broken the same way every time."""

    def score(place: Place, strength: float) -> float:
        x, held_out = scaled(scaling, train.x[place], dev.x[place])
        return float((fit(x, train.y, strength, cfg.max_steps).predict(held_out) == dev.y).mean())

    middle = cfg.C[(len(cfg.C) - 1) // 2]
    at_places = {place: score(place, middle) for place in train.x}
    place = max(at_places, key=lambda p: at_places[p])
    found = {c: at_places[place] if c == middle else score(place, c) for c in cfg.C}
    strength = max(found, key=lambda c: found[c])
    return Chosen(place, scaling, strength, found[strength])


def _predicted(data: dict[str, _Split], y: np.ndarray, chosen: Chosen, cfg: Probing) -> np.ndarray:
    x, test = scaled(chosen.scaling, data["train"].x[chosen.place], data["test"].x[chosen.place])
    predicted: np.ndarray = fit(x, y, chosen.C, cfg.max_steps).predict(test)
    return predicted


def scaled(scaling: Scaling, train: Any, *others: Any) -> tuple[Any, ...]:
    """Features as a probe takes them, by the statistics of training; sparse ones are left as they are."""
    if not isinstance(train, np.ndarray):
        return train, *others
    every = [x.astype(np.float64) for x in (train, *others)]
    if scaling == "raw":
        size = np.sqrt(np.mean(every[0] ** 2)) or 1.0
        return tuple(x / size for x in every)
    mean, sd = moments(train)
    return tuple((x - mean) / sd for x in every)


def fit(x: Any, y: Int[np.ndarray, " N"], strength: float, max_steps: int) -> Any:
    """A logistic regression; where it has not converged by ``max_steps``, it is taken as it is, for all models."""
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) == 1:  # as control labels are where all texts begin with one word
        return DummyClassifier(strategy="most_frequent").fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=max_steps).fit(x, y)
