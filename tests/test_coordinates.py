"""Slopes and best rates are found where they were planted; a real check tells muP from the standard."""

import json
import math
from itertools import product
from pathlib import Path

import pytest

from llmtrain.coordinates.check import Case, question_from
from llmtrain.coordinates.measure import Ended, Moved, moves
from llmtrain.coordinates.outputs import Spot, outputs
from llmtrain.coordinates.slopes import curves, kinds
from llmtrain.coordinates.transfer import basins, octaves
from llmtrain.data.prepare import prepare
from llmtrain.errors import ConfigError
from llmtrain.objectives.base import Task
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.denoising import Denoising
from runs import REPO, overrides, write_text
from tiny import ARCHS, batch_of, model_of

WIDTHS = (32, 64, 128)


def planted(slope: float, *, parametrization: str = "given", axis: str = "width") -> list[Moved]:
    """A layer that moves as size^slope, and its neighbour, which does not move more or less."""
    found = []
    for size, seed in product(WIDTHS, range(3)):
        noise = 1 + 0.01 * (seed - 1)
        by_layer = {
            Spot("trunk.blocks.0.mlp", "SwiGLU", True, (1, 2)): noise * size**slope,
            Spot("trunk.blocks.1", "residual stream", False, (2, 2)): noise,
        }
        case = Case(parametrization, axis, size, seed)  # type: ignore[arg-type]
        found.append(Moved(case, {1: by_layer, 5: by_layer}))
    return found


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.09, 0.5])
def test_a_slope_is_that_of_the_power_that_was_planted(slope):
    mlp, stream = kinds(curves(planted(slope)), "given", "width")
    assert mlp.slope(1) == pytest.approx(slope, abs=1e-9)
    assert stream.steepest.slope == pytest.approx(0.0, abs=1e-9)
    assert mlp.flat(0.1) == (abs(slope) <= 0.1)
    assert mlp.steepest.se == pytest.approx(0.0, abs=1e-9)
    assert not kinds(curves(planted(slope)), "standard", "width")


def test_over_depths_what_a_layer_adds_is_seen_in_the_stream_alone():
    assert [kind.name for kind in kinds(curves(planted(-1.0, axis="depth")), "given", "depth")] == [
        "residual stream"
    ]


def test_layers_of_stacks_of_different_depths_are_compared_where_they_are_as_deep():
    names = {i: Spot(f"trunk.blocks.{i}.mlp", "SwiGLU", False, (i, 8)).deep(4) for i in range(8)}
    assert names == {i: f"trunk behind {i // 2} of 4.mlp" if i % 2 == 0 else None for i in names}
    assert Spot("embed", "embedding").deep(4) == "embed"


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_what_does_not_move_or_is_no_number_is_not_flat(bad):
    moved = [
        Moved(case, {1: {spot: value * bad for spot, value in by_step[1].items()}})
        for case, by_step in planted(0.0)
    ]
    found = kinds(curves(moved), "given", "width")
    assert not any(kind.flat(0.1) for kind in found)
    assert all(kind.steepest.se is None for kind in found)


def runs_at(best: float, *, width: int = 64, rates: tuple[float, ...] = (1, 2, 4, 8, 16)) -> list[Ended]:
    case = Case("given", "width", width, 0)
    return [Ended(case, 0.001 * r, 2 + 0.1 * math.log(0.001 * r / best) ** 2) for r in rates]


def test_a_best_rate_is_the_vertex_that_was_planted():
    (basin,) = basins(runs_at(0.0031))
    assert basin.best == pytest.approx(0.0031)


@pytest.mark.parametrize("best", [0.0004, 0.05])
def test_a_best_rate_beyond_those_tried_is_not_guessed(best):
    (basin,) = basins(runs_at(best))
    assert basin.best is None
    assert octaves([basin, *basins(runs_at(0.004))]) is None


def test_a_run_that_went_wrong_counts_against_its_rate():
    ended = [e._replace(loss=math.nan) if e.lr > 0.01 else e for e in runs_at(0.004)]
    (basin,) = basins(ended)
    assert basin.best == pytest.approx(0.004)
    assert basin.losses[-1] == (math.inf,)


def test_two_rates_that_ended_well_leave_the_best_open():
    ended = [e._replace(loss=math.nan) if e.lr != 0.002 and e.lr != 0.004 else e for e in runs_at(0.0031)]
    (basin,) = basins(ended)
    assert basin.best is None


def test_octaves_are_factors_of_2_between_the_best_rates():
    found = [basins(runs_at(best, width=width))[0] for best, width in ((0.002, 64), (0.006, 128))]
    assert octaves(found) == pytest.approx(math.log2(3))


@pytest.mark.parametrize("objective", [Denoising(), Contrastive()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("name", ["plain", "moe", "hybrid"])
def test_outputs_are_seen_of_every_layer_and_nothing_is_left_behind(objective, name):
    model = model_of(objective, ARCHS[name])
    task, batch = Task(model, objective), batch_of(objective)
    seen = outputs(task, batch)
    assert task.training
    assert not any(module._forward_hooks for module in model.modules())
    names = {spot.name for spot in seen}
    for stack in ("trunk", "encoder") if objective.encoder else ("trunk",):
        for i, block in enumerate(getattr(model, stack).blocks):
            assert f"{stack}.blocks.{i}" in names
            assert {f"{stack}.blocks.{i}.{part}" for part in block.before} <= names
    assert {"embed", "trunk.norm", "head"} <= names
    kinds_seen = {spot.kind for spot in seen}
    assert ("MoE.router" in kinds_seen) == (name != "plain")
    assert ("SSM.in_proj.4" in kinds_seen) == (name == "hybrid")
    assert ("CrossAttention.kv.1" in kinds_seen) == objective.encoder


# the command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


def words(home: Path, **check: object) -> list[str]:
    small = overrides(home, seq_len=32, **{"model__n_layers": 1, "parametrization.base_width": 16})
    own = {"widths": "[32,64,128]", "seeds": 1, "steps": "[1,4]", "out": f"{home}/out"} | check
    return [w for w in small if not w.startswith("model.d_model=")] + [
        f"check.{key}={value}" for key, value in own.items()
    ]


@pytest.mark.slow
def test_a_check_tells_mup_from_the_standard_and_leaves_data_and_figures(home, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import coord_check

    rates = {"rates": "[1e-4,1e-3,4e-3,1.6e-2,6.4e-2]", "rate_seeds": 1, "rate_steps": 4, "rate_rows": 8}
    monkeypatch.setattr("sys.argv", ["coord_check.py", *words(home, **rates)])
    assert coord_check.main() == 0
    printed = capsys.readouterr().out
    assert "mup, base width 16: slope of ln |change| against ln width, 32 to 128" in printed
    found = json.loads((home / "out" / "coord_check.json").read_text())
    slopes = {(v["parametrization"], v["kind"]): v["slopes"]["4"] for v in found["verdicts"]}
    for kind in ("loss of each row", "SwiGLU.gate_up.0", "Attention.qkv.2"):
        assert abs(slopes["mup, base width 16", kind]) < 0.25, kind
        assert slopes["standard", kind] > 0.2, kind
    assert {row["width"] for row in found["rates"]} == {32, 64, 128}
    for name in ("coord_check_width", "coord_check_rates"):
        assert (home / "out" / f"{name}.png").stat().st_size > 10_000
        assert (home / "out" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_depth_is_checked_where_the_parametrisation_carries_it(home):
    given = [*words(home, widths="null"), "parametrization=completep", "parametrization.base_depth=1"]
    question = question_from(given)
    assert question.sizes("depth") == (2, 4, 8, 16)
    assert question.sizes("width") == (32, 64, 128, 256)
    assert question_from(words(home)).sizes("depth") == ()
    run = question.run_of(Case("given", "depth", 4, 2))
    assert (run.model.n_layers, run.model.d_model, run.seed) == (4, 16, 2)


def test_movement_is_the_same_for_the_same_seed(home):
    question = question_from(words(home, widths="[16,32]", steps="[1]"))
    prepared = prepare(question.run.data, question.run.tokenizer)
    first, again = (list(moves(question, prepared, lambda line: None)) for _ in range(2))
    assert first == again
    at_the_base = [m.by_step for m in first if m.case.size == 16]
    assert at_the_base[0] == at_the_base[1]  # where both parametrisations are one


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"check": {"widths": "[64]"}}, r"widths must be at least two different ones"),
        ({"check": {"rates": "[0.1,0.2]"}}, r"rates must be at least five"),
        ({"check": {"width": "[64,128]"}}, r"unknown key check\.width: did you mean check\.widths"),
        ({"check": {"widths": "[20,40]"}}, r"d_model=20 is no multiple of head_dim=8"),
        ({"words": ["parametrization=standard"]}, r"promises nothing over widths: set parametrization=mup"),
    ],
)
def test_a_mistake_is_one_line(home, changes, says):
    given = words(home, **changes.get("check", {}))
    if "words" in changes:
        given = [word for word in given if not word.startswith("parametrization.")] + changes["words"]
    with pytest.raises(ConfigError, match=says):
        question_from(given)
