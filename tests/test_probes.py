"""Probes, retrieval and similarity: planted structure is found, and shuffled structure is not."""

import numpy as np
import pytest

from llmtrain.evaluation.bm25 import bm25
from llmtrain.evaluation.cosine import Sides, cosines
from llmtrain.evaluation.feature_settings import FineTuning, Probing
from llmtrain.evaluation.features import Place
from llmtrain.evaluation.fine_tuning import fine_tune
from llmtrain.evaluation.geometry import cka_matrix, effective_rank
from llmtrain.evaluation.probe import control_labels, macro_f1, probe
from llmtrain.evaluation.readers import Length, RandomVectors, Reader, TfIdf, Unigrams
from llmtrain.evaluation.retrieval import hits, ranked, reciprocal_ranks, retrieve, retrieve_by
from llmtrain.evaluation.similarity import spearman
from llmtrain.evaluation.tasks import Classification, Example, Input, Pair, Retrieval
from tests.subjects import TOKENIZER, subject_of

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "my",
]
PROBING = Probing()


class Table(Reader):
    """Vectors that a test makes up: two places, of which the second carries what is planted."""

    def __init__(self, vectors: dict[str, np.ndarray], *, noise: bool = True) -> None:
        self.vectors, self.noise = vectors, noise

    def read(self, inputs, known):
        x = np.stack([self.vectors[one.text] for one in inputs]).astype(np.float32)
        noise = np.random.default_rng(list(inputs[0].text.encode())).normal(size=x.shape).astype(np.float32)
        return ({Place("0", "mean"): noise} if self.noise else {}) | {Place("1", "mean"): x}


def examples(n: int, split: str, rng: np.random.Generator) -> tuple[Example, ...]:
    names = (f"{split} {i}" for i in range(n))
    return tuple(
        Example(name, f"{split} {i // 4}", Input(name), str(rng.integers(3)), f"type {i % 9}")
        for i, name in enumerate(names)
    )


def planted(rng: np.random.Generator, *, shuffled: bool = False) -> tuple[Classification, Table]:
    task = Classification(
        "planted", examples(300, "a", rng), examples(200, "b", rng), examples(600, "c", rng)
    )
    vectors = {}
    for e in (*task.train, *task.dev, *task.test):
        label = rng.integers(3) if shuffled else int(e.label)
        vectors[e.id] = rng.normal(size=8) + 3 * np.eye(8)[label]
    return task, Table(vectors)


def test_a_probe_finds_planted_labels_and_where_they_are():
    task, reader = planted(np.random.default_rng(0))
    rows = {row.metric: row for row in probe(task, reader, PROBING)}
    assert rows["accuracy"].value > 0.9 and rows["macro_f1"].value > 0.9
    assert rows["accuracy"].choices["layer"] == "1"
    # control labels cannot be read off, so the best is the one that most types have
    shares = np.bincount(control_labels(task.test, task.train)) / len(task.test)
    assert rows["selectivity"].value == pytest.approx(rows["accuracy"].value - shares.max(), abs=0.05)
    assert rows["accuracy"].value == rows["accuracy"].items.value.mean()
    assert abs(rows["accuracy"].value - rows[f"accuracy, {rows['accuracy'].choices['scaling']}"].value) == 0


def test_a_probe_of_shuffled_labels_is_at_chance():
    rows = [probe(*planted(np.random.default_rng(seed), shuffled=True), PROBING)[0] for seed in range(8)]
    z = [(row.value - 1 / 3) / (2 / 9 / row.n) ** 0.5 for row in rows]
    assert abs(np.mean(z)) < 3 / len(z) ** 0.5
    assert all(abs(one) < 4 for one in z)


def test_control_labels_are_learnt_where_features_tell_types():
    rng = np.random.default_rng(1)
    task, _ = planted(rng)
    by_type = {f"type {i}": 4 * np.eye(12)[i] for i in range(9)}
    vectors = {
        e.id: by_type[e.type] + 0.1 * rng.normal(size=12) for e in (*task.train, *task.dev, *task.test)
    }
    rows = {row.metric: row for row in probe(task, Table(vectors, noise=False), PROBING)}
    assert rows["selectivity"].value == pytest.approx(rows["accuracy"].value - 1, abs=0.02)


def test_a_control_label_that_all_types_share_is_learnt_at_once():
    rng = np.random.default_rng(2)
    task, reader = planted(rng)
    task = task._replace(
        **{n: tuple(e._replace(type="a") for e in getattr(task, n)) for n in ("train", "dev", "test")}
    )
    rows = {row.metric: row for row in probe(task, reader, PROBING)}
    assert rows["selectivity"].value == pytest.approx(rows["accuracy"].value - 1)


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        y, predicted = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
        assert macro_f1(y, predicted) == pytest.approx(f1_score(y, predicted, average="macro"))


def pairs(n: int, split: str) -> tuple[Pair, ...]:
    return tuple(Pair(f"{split}{i}", f"{split}{i // 2}", f"{split} q{i}", f"{split} t{i}") for i in range(n))


def partners(rng: np.random.Generator, *, shuffled: bool) -> tuple[Retrieval, Table]:
    task = Retrieval("partners", pairs(100, "a"), pairs(400, "b"))
    vectors: dict[str, np.ndarray] = {}
    for part in (task.dev, task.test):
        own = rng.normal(size=(len(part), 16))
        partner = own[rng.permutation(len(part))] if shuffled else own + 0.3 * rng.normal(size=own.shape)
        vectors |= {p.first: x for p, x in zip(part, own, strict=True)}
        vectors |= {p.second: x for p, x in zip(part, partner, strict=True)}
    return task, Table(vectors)


def test_partners_are_found_and_shuffled_ones_at_chance():
    recall, mrr, *_ = retrieve(*partners(np.random.default_rng(0), shuffled=False))
    assert recall.value > 0.8 and recall.choices["layer"] == "1"
    rows = [retrieve(*partners(np.random.default_rng(seed), shuffled=True)) for seed in range(12)]
    assert np.mean([row[0].value for row in rows]) == pytest.approx(
        1 / 400, abs=3 * (1 / 400 / 400 / 12) ** 0.5
    )
    assert np.mean([row[1].value for row in rows]) == pytest.approx(mrr.chance, rel=0.15)


def test_who_scores_all_alike_is_at_chance_exactly():
    scores = np.ones((50, 50))
    recall, mrr = ranked(Retrieval("ties", (), pairs(50, "a")), scores, None)
    assert (recall.value, mrr.value) == pytest.approx((recall.chance, mrr.chance))
    scores = np.random.default_rng(0).integers(0, 3, (40, 40)).astype(float)
    # ties broken at random, many times over
    jitter = [scores + 1e-6 * np.random.default_rng(i).random(scores.shape) for i in range(3000)]
    assert np.mean([hits(s).mean() for s in jitter]) == pytest.approx(hits(scores).mean(), abs=2e-3)
    assert np.mean([reciprocal_ranks(s).mean() for s in jitter]) == pytest.approx(
        reciprocal_ranks(scores).mean(), abs=2e-3
    )


def test_bm25_is_its_formula():
    targets = ["a b b c", "a a d", "e"]
    found = bm25(["a b", "e e", "zzz"], targets)
    idf = {w: np.log(1 + (3 - n + 0.5) / (n + 0.5)) for w, n in {"a": 2, "b": 1, "e": 1}.items()}
    mean = 8 / 3

    def term(word: str, tf: int, length: int) -> float:
        return idf[word] * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean))

    expected = [
        [term("a", 1, 4) + term("b", 2, 4), term("a", 2, 3), 0],
        [0, 0, 2 * term("e", 1, 1)],
        [0, 0, 0],
    ]
    np.testing.assert_allclose(found, expected)


def test_baselines_find_what_they_can_tell():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(80)]
    task = Retrieval(
        "words", pairs(2, "x"), tuple(Pair(str(i), str(i), t, t[::1] + " !") for i, t in enumerate(texts))
    )
    assert retrieve_by(task, bm25)[0].value > 0.9
    known = [Input(t) for t in texts]
    for reader in (TfIdf(), Unigrams(TOKENIZER), RandomVectors(TOKENIZER, 32)):
        ((_, x),) = reader.read(known, known).items()
        assert x.shape[0] == len(texts)
    lengths = Length().read([Input("x" * n) for n in (1, 10, 11, 1000)], [])[Place("bytes", "length")]
    order = cosines(Sides(lengths, lengths))[1]
    assert order[1] > order[2] > order[0] and order[2] > order[3]


def test_a_name_is_known_to_unigrams_as_a_whole():
    text = "call(x, y)"
    inputs = [Input(text, (0, 4)), Input(text, (5, 6)), Input("x", (0, 1))]
    ((_, x),) = Unigrams(TOKENIZER).read(inputs, inputs[:2]).items()
    assert x.toarray().tolist() == [[1, 0], [0, 1], [0, 1]]


def test_spearman_is_that_of_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 99).astype(float), rng.normal(size=99)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman(np.ones(5), y[:5]) == 0


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    assert effective_rank(rng.normal(size=(4000, 10))) == pytest.approx(10, rel=0.01)
    assert effective_rank(rng.normal(size=(100, 1)) * np.ones(7) + 5) == pytest.approx(1)
    x = rng.normal(size=(200, 8))
    assert effective_rank(3 * x + 7) == pytest.approx(effective_rank(x))


def test_cka_is_one_of_the_same_space_and_zero_of_strangers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 60))
    turn, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    features = {"a": x, "b": 2 * x @ turn + 1, "c": x + rng.normal(size=x.shape)}
    features |= {f"stranger {i}": rng.normal(size=(120, 50)) for i in range(20)}
    matrix = cka_matrix(features)
    assert np.allclose(matrix, matrix.T) and np.allclose(matrix.diagonal(), 1)
    assert matrix[0, 1] == pytest.approx(1) and 0.3 < matrix[0, 2] < 0.9
    assert abs(matrix[0, 3:].mean()) < 0.02


@pytest.mark.parametrize("objective", ["clm", "denoising", "contrastive"])
def test_fine_tuning_learns_what_is_there_and_leaves_the_model_alone(objective):
    rng = np.random.default_rng(0)

    def part(split: str, n: int) -> tuple[Example, ...]:
        labels = rng.integers(2, size=n)
        return tuple(
            Example(f"{split}{i}", f"{split}{i}", Input("ab"[y] * int(rng.integers(3, 9))), str(y), "t")
            for i, y in enumerate(labels)
        )

    task = Classification("letters", part("a", 60), part("b", 30), part("c", 40))
    subject = subject_of(objective)
    before = [p.clone() for p in subject.model.parameters()]
    cfg = FineTuning(steps=20, rows=8, tokens=16, rates=(3e-3,))
    (row,), (again,) = (fine_tune(task, subject, cfg) for _ in range(2))
    assert row.value > 0.95 and row.value == again.value
    assert all((a == b).all() for a, b in zip(before, subject.model.parameters(), strict=True))
