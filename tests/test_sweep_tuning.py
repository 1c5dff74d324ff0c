"""Learning rates of a sweep: what is tried, when a corner is done, and the rule that all cells follow."""

import dataclasses
import math

import numpy as np
import pytest

from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.settings import Tuning
from llmtrain.sweep.tuning import Rule, best_of, corners, next_rates, rule_of

TUNING = Tuning(rates=3, first=0.01, factor=2.0, widen=3)


def cell(n: int, tokens: int, seed: int = 0) -> Cell:
    return Cell(
        id=f"n{n}-d{tokens}-{seed}", role=Role.CELL, series="s", seed=seed, n=n, d_model=8, tokens=tokens,
        flops=6 * n * tokens, steps=tokens, batch_rows=1, epochs=0.1, words=(),
    )  # fmt: skip


def searched(best: float, tuning: Tuning = TUNING, *, diverges_above: float = math.inf) -> dict[float, float]:
    """All rates that a search tries where the loss is a parabola in ln lr."""
    tried: dict[float, float] = {}
    while rates := next_rates(tried, tuning):
        tried |= {r: math.log(r / best) ** 2 if r <= diverges_above else math.inf for r in rates}
    return tried


@pytest.mark.parametrize("best", [0.004, 0.01, 0.013, 0.03, 0.11])
def test_a_search_ends_with_the_best_inside_at_the_vertex(best: float) -> None:
    found = best_of(cell(100, 1000), searched(best))
    assert found.inside
    assert found.lr == pytest.approx(best)


def test_a_search_that_would_go_on_ends_on_the_edge_and_says_so() -> None:
    tried = searched(10.0)
    found = best_of(cell(100, 1000), tried)
    assert len(tried) == 6 and not found.inside and found.lr == max(tried)


def test_a_rate_that_diverges_is_worse_than_any() -> None:
    tried = searched(0.01, diverges_above=0.015)
    found = best_of(cell(100, 1000), tried)
    assert found.inside and found.lr == 0.01  # no parabola has an infinite point
    assert found.tried["0.02"] is None


def test_one_rate_is_taken_as_given() -> None:
    assert next_rates({}, Tuning(rates=1)) == [0.01]
    assert next_rates({0.01: 1.0}, Tuning(rates=1)) == []


def test_corners_are_the_ends_of_size_and_length_of_one_seed() -> None:
    grid = [cell(n, c // n, seed) for c in (10**6, 10**8) for n in (100, 200, 400) for seed in (0, 1)]
    found = {(c.n, c.tokens) for c in corners(grid, 4)}
    assert found == {(100, 10**4), (400, 2500), (100, 10**6), (400, 250_000)}
    assert {(c.n, c.tokens) for c in corners(grid, 2)} == {(100, 10**4), (100, 10**6)}
    assert all(c.seed == 0 for c in corners(grid, 4))


def test_the_rule_recovers_a_power_law_in_size_and_length() -> None:
    planted = Rule(1.0, -0.4, -0.15)
    bests = [best_of(cell(n, d), searched(planted.lr(n, d))) for n in (1000, 50_000) for d in (10**5, 10**7)]
    assert rule_of(bests) == pytest.approx(planted)


def test_noise_moves_a_rule_of_all_trials_less_than_one_of_vertices() -> None:
    """Of 100 sweeps with one seed a trial, the rate four times beyond the grid."""
    planted, rng = Rule(5.26, -0.455, -0.283), np.random.default_rng(0)
    places = [(18_000, 700_000), (18_000, 2_000_000), (180_000, 800_000), (270_000, 1_600_000)]
    beyond = (380_000, 4_800_000)
    errors = []
    for _ in range(100):
        bests = []
        for n, d in places:
            tried: dict[float, float] = {}
            while rates := next_rates(tried, TUNING):
                for r in rates:
                    off = math.log(r / planted.lr(n, d))
                    tried[r] = 3 * math.exp(
                        0.06 * off**2 * (1.5 if off > 0 else 1) + 0.011 * rng.standard_normal()
                    )
            bests.append(best_of(cell(n, d), tried))
        vertices = [dataclasses.replace(best, tried={f"{best.lr:.6g}": 1.0}) for best in bests]
        errors.append([math.log(rule_of(b).lr(*beyond) / planted.lr(*beyond)) for b in (bests, vertices)])
    ours, theirs = np.sqrt(np.mean(np.square(errors), 0))
    assert ours < 0.85 * theirs


def test_what_the_corners_do_not_tell_is_no_slope() -> None:
    bests = [best_of(cell(1000, d), searched(Rule(1.0, 0.0, -0.3).lr(1000, d))) for d in (10**5, 10**7)]
    found = rule_of(bests)
    assert found.by_n == pytest.approx(0, abs=1e-12) and found.by_tokens == pytest.approx(-0.3)
    assert found.lr(10**6, 10**6) == pytest.approx(Rule(1.0, 0.0, -0.3).lr(1, 10**6))
