"""A comparison with planted numbers: drawn from a seed, through the schema that real ones are written in."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from llmtrain.compare.saved import (
    About,
    Alike,
    CellAbout,
    Comparison,
    Key,
    Overlap,
    SeriesAbout,
    TuningAbout,
    Whose,
    gathered,
)
from llmtrain.evaluation.base import Items, Kind, Measured

SERIES = {
    "clm/dense": ("clm", "dense"),
    "mlm/dense": ("mlm", "dense"),
    "denoising/dense": ("denoising", "dense"),
    "contrastive/dense": ("contrastive", "dense"),
    "clm/moe": ("clm", "moe"),
    "clm/ssm": ("clm", "ssm"),
    "clm/hybrid": ("clm", "hybrid"),
}
SEEDS = (0, 1, 2)
BUDGET = 4_000_000_000_000


class Planted(NamedTuple):
    """A yardstick, and what every model is truly worth on it."""

    name: str
    metric: str
    kind: Kind
    better: Literal["higher", "lower"]
    trained: Mapping[str, float]  # by series
    untrained: float
    baselines: Mapping[str, float]
    chance: float | None = None
    ceiling: float | None = None
    summary: bool = True
    odd: Mapping[str, str] = {}  # series whose value means something else, and what
    groups: int = 40
    items: int = 240  # 0: a value of the whole set
    seed_sd: float = 0.012
    item_sd: float = 0.15


def by_series(*values: float | None) -> dict[str, float]:
    """In the order of ``SERIES``; none where a series cannot be measured."""
    return {name: v for name, v in zip(SERIES, values, strict=True) if v is not None}


BOUND = "left to right with the rest masked: a bound, out of distribution"
CONDITIONALS = "a sum of conditionals, no likelihood"
YARDSTICKS = (
    Planted(
        "suffix_bits_per_byte", "bits per byte", "generation", "lower",
        by_series(2.20, 3.45, 2.55, None, 2.16, 2.12, 2.13), 7.9, {"unigram": 4.6},
        chance=8.0, odd={"mlm/dense": BOUND}, seed_sd=0.02,
    ),
    Planted(
        "probe_name_role", "accuracy", "features", "higher",
        by_series(0.71, 0.66, 0.72, 0.47, 0.715, 0.74, 0.76), 0.46,
        {"random_vectors": 0.43, "unigram": 0.52, "length": 0.31}, chance=0.25, ceiling=1.0,
    ),
    Planted(
        "probe_name_role", "macro_f1", "features", "higher",
        by_series(0.65, 0.61, 0.66, 0.40, 0.65, 0.69, 0.70), 0.40,
        {"random_vectors": 0.38, "unigram": 0.45}, chance=0.25, ceiling=1.0, items=0,
    ),
    Planted(
        "retrieval_docstring", "recall@1", "features", "higher",
        by_series(0.05, 0.04, 0.06, 0.19, 0.05, 0.05, 0.06), 0.04,
        {"random_vectors": 0.05, "tfidf": 0.33, "bm25": 0.36}, chance=0.001, ceiling=1.0,
    ),
    Planted(
        "continuation_retrieval", "recall@1", "features", "higher",
        by_series(0.20, 0.18, 0.22, 0.61, 0.21, 0.22, 0.22), 0.12,
        {"random_vectors": 0.13, "tfidf": 0.45}, chance=0.001, ceiling=1.0, summary=False,
    ),
    Planted(
        "minimal_pairs", "accuracy", "generation", "higher",
        by_series(0.63, 0.58, 0.60, None, 0.63, 0.635, 0.64), 0.50,
        {"unigram": 0.52, "length": 0.50}, chance=0.5, ceiling=1.0, groups=16,
    ),
    Planted(
        "minimal_pairs/order", "accuracy", "generation", "higher",
        by_series(0.61, 0.57, 0.60, None, 0.62, 0.63, 0.64), 0.50,
        {"unigram": 0.52, "length": 0.50}, chance=0.5, ceiling=1.0, summary=False,
    ),
    Planted(
        "pseudo_likelihood", "bits per byte", "pseudo_likelihood", "lower",
        by_series(None, 1.9, None, None, None, None, None), 7.9, {}, odd={"mlm/dense": CONDITIONALS},
    ),
    Planted(
        "effective_rank", "dimensions", "geometry", "higher",
        by_series(20.0, 23.0, 26.0, 29.0, 32.0, 35.0, 38.0), 40.0, {},
        summary=False, items=0, seed_sd=0.8, item_sd=4.0,
    ),
)  # fmt: skip


def compared(
    seed: int = 0,
    *,
    yardsticks: tuple[Planted, ...] = YARDSTICKS,
    budgets: tuple[int, ...] = (BUDGET,),
    seeds: tuple[int, ...] = SEEDS,
) -> tuple[Comparison, dict[Key, Items]]:
    """Not judged yet. With several budgets, errors between chance and ceiling fall by 10% for each doubling."""
    rng = np.random.default_rng(seed)
    rows, items = gathered(_measured(rng, yardsticks, budgets, seeds))
    return Comparison(about=about(budgets, seeds), rows=rows, alike=_alike(rng, budgets, seeds)), items


def _measured(
    rng: np.random.Generator,
    yardsticks: tuple[Planted, ...],
    budgets: tuple[int, ...],
    seeds: tuple[int, ...],
) -> Iterator[tuple[Whose, Measured]]:
    for one in yardsticks:
        text = rng.normal(0, one.item_sd, one.items)  # how hard an item is, for all
        for name, value in one.trained.items():
            own = rng.normal(0, one.item_sd / 2, one.items)  # and for this series
            for budget in budgets:
                here = _at(one, value, budget / max(budgets))
                for k in seeds:
                    whose = Whose(series=name, role="trained", seed=k, budget=budget)
                    yield whose, _one(rng, one, here, one.seed_sd, text + own, one.odd.get(name))
            for k in seeds:
                whose = Whose(series=name, role="untrained", seed=k)
                yield whose, _one(rng, one, one.untrained, one.seed_sd / 2, text, one.odd.get(name))
        for name, value in one.baselines.items():
            yield Whose(series=name, role="baseline"), _one(rng, one, value, 0.0, text, None)


def _at(one: Planted, value: float, share: float) -> float:
    best = 0.0 if one.ceiling is None and one.better == "lower" else one.ceiling
    if one.chance is None or best is None:
        return value
    error = (best - value) / (best - one.chance) * 0.9 ** np.log2(share)
    return best - min(1.0, float(error)) * (best - one.chance)


def _one(
    rng: np.random.Generator, one: Planted, value: float, seed_sd: float, texts: np.ndarray, odd: str | None
) -> Measured:
    mean = value + rng.normal(0, seed_sd)
    items, item_se = None, one.item_sd / np.sqrt(240)
    if one.items:
        values = mean + texts + rng.normal(0, one.item_sd / 2, one.items)
        group = np.arange(one.items) % one.groups
        items = Items(
            tuple(f"item {i}" for i in range(one.items)), tuple(f"group {g}" for g in group), values
        )
        mean = float(values.mean())
    return Measured(
        yardstick=one.name,
        kind=one.kind,
        split="test",
        metric=one.metric,
        value=float(mean),
        better=one.better,
        n=one.items or 240,
        items=items,
        item_se=float(item_se),
        chance=one.chance,
        ceiling=one.ceiling,
        summary=one.summary,
        common=odd is None,
        choices={"layer": 2, "pooling": "mean"} if one.kind == "features" else {},
        note=odd or "",
    )


def _alike(rng: np.random.Generator, budgets: tuple[int, ...], seeds: tuple[int, ...]) -> tuple[Alike, ...]:
    names = list(SERIES)
    return tuple(
        Alike(
            first=first, second=second, first_seed=seeds[0], second_seed=seeds[-1], budget=budgets[-1],
            value=float(np.clip((0.92 if first == second else 0.8 - 0.07 * abs(i - j)) + rng.normal(0, 0.02), 0, 1)),
        )
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if i <= j
    )  # fmt: skip


def about(budgets: tuple[int, ...] = (BUDGET,), seeds: tuple[int, ...] = SEEDS) -> About:
    cells = tuple(
        CellAbout(
            run=f"{name.replace('/', '-')}-{budget:.3g}-s{k}", series=name, seed=k, budget=budget,
            flops_model=int(budget * (1 + 0.002 * i)), flops_per_token=1.2e6,
            n_total=190_000 + 50_000 * ("moe" in name), n_active=190_000, raw_tokens=int(budget / 1.2e6), epochs=0.4,
            steps=800, batch_rows=32, lr=0.006,
            train_seconds=240.0,
        )
        for i, name in enumerate(SERIES)
        for budget in budgets
        for k in seeds
    )  # fmt: skip
    return About(
        name="planted",
        matched="flops",
        size="flops_per_token",
        budgets=budgets,
        baseline="clm/dense",
        series=tuple(
            SeriesAbout(name=name, objective=objective, architecture=architecture)
            for name, (objective, architecture) in SERIES.items()
        ),
        seeds=seeds,
        cells=cells,
        tuning=tuple(
            TuningAbout(
                series=name,
                budget=budgets[-1],
                losses={"0.003": 3.1, "0.006": 3.0, "0.012": 3.2},
                best=0.006,
                inside=True,
            )
            for name in SERIES
        ),
        seq_len=128,
        vocab_size=1024,
        precision="fp32",
        corpus="planted numbers, no text",
        corpus_fingerprint="planted",
        tokenizer_hash="planted",
        held_out_files=60,
        held_out_documents={"train": 300, "dev": 100, "test": 100},
        overlap={"retrieval_docstring": Overlap(items=260, dropped=20)},
        device="none",
        git=None,
        versions={"python": "3.11"},
    )
