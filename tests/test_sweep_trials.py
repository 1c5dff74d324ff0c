"""What the middle cell settles for a whole sweep, and what a plan's forecast believes."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from llmtrain.errors import ConfigError
from llmtrain.scaling import Method, planned, study
from llmtrain.scaling.flops import measured
from llmtrain.scaling.published import LAWS
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.forecast import Prior, prior_from
from llmtrain.sweep.load import sweep_from
from llmtrain.sweep.settings import Noise
from llmtrain.sweep.trials import best_batch, faster, measured_noise, middle, replicates, write_noise

SD = 0.01


def cell(n: int, tokens: int, seed: int = 0) -> Cell:
    return Cell(
        id=f"s-cell-n{n}-s{tokens}-seed{seed}", role=Role.CELL, series="s", seed=seed, n=n, d_model=8, tokens=tokens,
        flops=6 * n * tokens, steps=tokens, batch_rows=1, epochs=0.1, words=("a=1", f"seed={seed}"),
    )  # fmt: skip


def test_the_middle_cell_is_in_the_middle_of_size_and_length() -> None:
    grid = [cell(n, d, seed) for n in (10, 100, 1000) for d in (50, 500, 5000) for seed in (1, 3)]
    found = middle(grid)
    assert (found.n, found.tokens, found.seed) == (100, 500, 1)
    assert middle([cell(7, 7)]) == cell(7, 7)


def test_a_batch_is_taken_while_its_loss_is_worse_by_no_more_than_noise() -> None:
    limit = SD * math.sqrt(2 / 2)

    def losses(*worse: float) -> dict[int, dict[str, list[float]]]:
        """Of batches 1, 2, 4, ...: by how much ln loss is above that of the batch before."""
        levels = np.exp(np.cumsum([0.0, *worse]))
        return {2**k: {"s": [float(level), float(level)]} for k, level in enumerate(levels)}

    assert best_batch(losses(0.9 * limit), SD) == 2
    assert best_batch(losses(1.1 * limit), SD) == 1
    assert best_batch(losses(-0.1, 0.9 * limit), SD) == 4
    assert best_batch(losses(0.1, -0.2), SD) == 1  # what comes after a batch that is worse does not count
    assert best_batch({1: {"s": [2.0]}, 2: {"s": [math.inf]}}, SD) == 1
    both = {1: {"a": [2.0], "b": [2.0]}, 2: {"a": [1.9], "b": [2.2]}}
    assert best_batch(both, SD) == 1  # one batch for all series


def test_seeds_that_scatter_more_than_was_assumed_allow_more() -> None:
    one, other = [2.0, 2.1, 2.2], [2.05, 2.15, 2.25]
    assert best_batch({1: {"s": one}, 2: {"s": other}}, 1e-4) == 2
    assert best_batch({1: {"s": one[:2]}, 2: {"s": other[:2]}}, 1e-4) == 1  # two seeds say nothing of an sd


def test_bfloat16_is_taken_where_it_is_clearly_faster() -> None:
    assert faster({"fp32": 1.0, "bf16": 0.6}) == "bf16"
    assert faster({"fp32": 1.0, "bf16": 0.99}) == "fp32"


def test_replicates_are_the_grids_own_cells_where_it_has_them() -> None:
    sweep = sweep_from(["sweep=isoflop", "sweep.series={s: [experiment=clm_dense]}", "sweep.seeds=[0,1]"])
    sweep = dataclasses.replace(sweep, noise=Noise(seeds=(0, 1, 2)))
    found = replicates(sweep, [cell(100, 500, seed) for seed in (0, 1)])
    assert [(c.seed, c.role) for c in found] == [(0, Role.CELL), (1, Role.CELL), (2, Role.TUNE)]
    assert [c.id for c in found[:2]] == [cell(100, 500, seed).id for seed in (0, 1)]
    assert found[2].words == ("a=1", "seed=2") and found[2].id.endswith("seed2")


def test_noise_is_the_sd_of_ln_loss_within_series(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = {
        name: np.exp(level + SD * rng.standard_normal(400)).tolist() for name, level in (("a", 1), ("b", 0))
    }
    sd = write_noise(tmp_path, losses)
    assert sd == pytest.approx(SD, rel=0.1) and measured_noise(tmp_path) == sd
    assert write_noise(tmp_path, {"a": [2.0, 2.1, math.inf]}) is None  # too few of them ended well
    assert json.loads((tmp_path / "noise.json").read_text())["losses"] == {"a": [2.0, 2.1, None]}


def test_two_replicates_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 different seeds"):
        Noise(seeds=(0, 1, 1))


def test_a_prior_is_a_papers_law_or_that_of_a_fit_with_its_noise(tmp_path: Path) -> None:
    assert prior_from("hoffmann2022", Prior()).law == LAWS["hoffmann2022"]
    rng = np.random.default_rng(1)
    n, c = (x.ravel() for x in np.meshgrid(np.geomspace(1e5, 1e7, 5), np.geomspace(1e13, 1e15, 4)))
    n, c = np.tile(n, 3), np.tile(c, 3)
    d = c / (6 * n)
    truth = Prior()
    points = planned({"n": n, "d": d, "c": c}, measured(n, d, c, "flops_model"))
    losses = truth.loss(n, d) * np.exp(SD * rng.standard_normal(len(n)))
    study([dataclasses.replace(points, loss=losses)], Method(bootstrap=0)).write(tmp_path)
    found = prior_from(str(tmp_path), Prior())
    at = np.array([1e6]), np.array([1e7])
    assert found.loss(*at) == pytest.approx(truth.loss(*at), rel=0.01)
    assert found.seed_sd == pytest.approx(SD, rel=0.25) and found.misfit_sd < SD


@pytest.mark.parametrize(
    ("source", "said"), [("hofmann2022", "did you mean hoffmann2022"), ("x", "there are hoffmann")]
)
def test_a_prior_that_is_not_there_is_one_line(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prior_from(source, Prior())
