"""A ladder's trunk and branches: each branch starts where the trunk has a checkpoint, and ends at its horizon."""

import dataclasses

import pytest

from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.ladder import ladder
from llmtrain.sweep.load import sweep_from
from llmtrain.sweep.question import precision
from llmtrain.sweep.settings import Ladder


def rung(steps: int, n: int = 1000, seed: int = 0) -> Cell:
    return Cell(
        id=f"n{n}-s{steps}", role=Role.BRANCH, series="s", seed=seed, n=n, d_model=8, tokens=64 * steps,
        flops=6 * n * 64 * steps, steps=steps, batch_rows=1, epochs=0.1, words=("seq_len=64", f"steps={steps}"),
    )  # fmt: skip


def value(cell: Cell, key: str) -> str:
    (found,) = [word.partition("=")[2] for word in cell.words if word.startswith(f"{key}=")]
    return found


@pytest.mark.parametrize("lengths", [(100, 210, 403, 800), (7, 15), (1000,)])
@pytest.mark.parametrize("decay", [0.1, 0.2, 0.5])
def test_every_branch_begins_at_a_checkpoint_of_the_trunk_and_decays_to_its_horizon(
    lengths: tuple[int, ...], decay: float
) -> None:
    cells = ladder([rung(n) for n in lengths], decay=decay, warmup=0.1)
    (trunk,) = [c for c in cells if c.role is Role.TRUNK]
    branches = [c for c in cells if c.role is Role.BRANCH]
    every = int(value(trunk, "checkpoint.every"))
    assert len(branches) == len(lengths)
    for branch, length in zip(branches, sorted(lengths), strict=True):
        name, _, at = str(branch.origin).partition("@")
        assert name == trunk.id == value(branch, "labels.trunk")
        assert int(at) % every == 0 and 0 < int(at) <= trunk.steps
        assert int(at) + int(value(branch, "schedule.decay")) == branch.steps == int(value(branch, "steps"))
        assert branch.steps == pytest.approx(length, rel=0.06)
        assert value(branch, "schedule.warmup") == value(trunk, "schedule.warmup")
    assert trunk.steps == max(int(str(b.origin).partition("@")[2]) for b in branches)


def test_a_fresh_run_of_the_shortest_horizon_checks_its_branch() -> None:
    cells = ladder([rung(100), rung(200)], decay=0.2, warmup=0.1)
    (fresh,) = [c for c in cells if c.role is Role.CHECK]
    shortest = min((c for c in cells if c.role is Role.BRANCH), key=lambda c: c.steps)
    assert fresh.steps == shortest.steps
    own = {word for word in shortest.words if not word.startswith("labels.trunk")}
    assert set(fresh.words) == own


def test_sizes_and_seeds_have_trunks_of_their_own() -> None:
    cells = ladder(
        [rung(s, n, seed) for s in (100, 200) for n in (10, 20) for seed in (0, 1)], decay=0.2, warmup=0.1
    )
    assert len({c.id for c in cells}) == len(cells) == 4 * (1 + 2 + 1)
    assert len([c for c in cells if c.role is Role.TRUNK]) == 4


def test_a_branch_costs_what_it_trains_itself() -> None:
    rungs = [dataclasses.replace(rung(n), seconds=float(n)) for n in (100, 200)]
    trunk, *others = ladder(rungs, decay=0.2, warmup=0.1)
    short, check, long = others
    assert [c.steps for c in (trunk, short, check, long)] == [160, 100, 100, 200]
    assert [c.own_share for c in (trunk, short, check, long)] == [
        1,
        pytest.approx(0.2),
        1,
        pytest.approx(0.2),
    ]
    assert [c.seconds for c in (trunk, short, check, long)] == pytest.approx([160, 20, 100, 40])


def test_no_precision_is_promised_where_few_trunks_leave_no_interval() -> None:
    sweep = sweep_from(["sweep=ladder"])
    few = ladder([rung(s, n) for n in (1000, 2000, 4000) for s in (100, 200)], decay=0.2, warmup=0.1)
    [said] = precision(sweep, few)
    assert (
        said.startswith("precision: none is promised, since 3 trunks") and "7 trunks or three seeds" in said
    )
    sizes = (1000, 1500, 2000, 3000, 4000, 6000, 8000)
    enough = ladder([rung(s, n) for n in sizes for s in (100, 200)], decay=0.2, warmup=0.1)
    assert "none is promised" not in precision(sweep, enough)[0]


@pytest.mark.parametrize("form", ["isoflop", "envelope", "gadre"])
def test_a_form_that_is_not_forecast_says_so(form: str) -> None:
    sweep = sweep_from(["sweep=isoflop", f"sweep.fit.form={form}"])
    assert precision(sweep, [rung(100)]) == [
        f"precision: none is forecast for form {form}, only for chinchilla"
    ]


def test_what_is_beside_the_ladder_is_trained_by_its_recipe() -> None:
    sweep = sweep_from(["sweep=ladder"])
    assert isinstance(sweep, Ladder)
    short = sweep.tokens_per_param[0]
    cell = dataclasses.replace(rung(1000), tokens=round(4 * short * 1000))  # four times the shortest horizon
    alone = sweep.alone(cell)
    assert value(alone, "schedule") == "wsd"
    assert int(value(alone, "schedule.decay")) == round(sweep.decay * 1000)
    assert int(value(alone, "schedule.warmup")) == round(sweep.warmup * 1000 / 4)
