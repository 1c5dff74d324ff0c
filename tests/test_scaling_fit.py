"""Fits of planted laws: what was put in comes out, whatever the form, the scale or the noise."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.errors import ConfigError, DataError, NumbersError
from llmtrain.scaling import Method, fit, read, read_fit
from llmtrain.scaling.columns import Columns
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.resample import draw
from planted import LAWS, planted, points, surface
from scripts.fit import fit as fit_command


def test_scaling_never_imports_torch() -> None:
    """A fresh interpreter, since this one has it; matplotlib waits for figures, too."""
    code = (
        "import sys, llmtrain.scaling; bad = {'torch', 'lightning', 'matplotlib', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_five_parameters_come_back_to_eight_digits() -> None:
    """On the surface, grid and tolerance of the published check."""
    law = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    for delta in ("auto", 1e-3, np.inf):
        found = fit(surface(law), Method(delta=delta, bootstrap=0)).law.parameters
        assert found == pytest.approx(law, rel=1e-8)


@pytest.mark.parametrize("form", LAWS)
def test_a_planted_law_comes_back(form: str) -> None:
    law = LAWS[form]
    for residual in ("log", "raw"):
        found = fit(points(form), Method(form=form, residual=residual, bootstrap=0)).law.parameters
        assert found == pytest.approx(law, rel=1e-5), residual


@pytest.mark.parametrize("form", LAWS)
def test_slopes_are_derivatives(form: str) -> None:
    """Of every term, by every parameter: against differences."""
    p = points(form)
    f = FORMS[form]
    x = {key: p.x[key] for key in f.needs}
    model = f.on(x, f.centre(x))
    theta = f.theta(LAWS[form], model.centre)[None]
    for k in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, k] = 1e-6
        for j, slope in enumerate(model.slopes(theta)):
            difference = (model.terms(theta + step)[j] - model.terms(theta - step)[j])[0] / 2e-6
            np.testing.assert_allclose(np.broadcast_to(slope[..., k], (1, len(p)))[0], difference, atol=1e-7)


@pytest.mark.parametrize("form", LAWS)
def test_the_unit_of_the_loss_and_of_the_counts_does_not_matter(form: str) -> None:
    """Stopping has no scale: in bits or in millions the same fit is found."""
    p = points(form, noise=0.01)
    first = fit(p, Method(form=form, bootstrap=0))
    scaled = replace(p, loss=p.loss * 1e4)
    second = fit(scaled, Method(form=form, bootstrap=0))
    assert second.found.objective == pytest.approx(first.found.objective, rel=1e-7)
    for name in FORMS[form].exponents:
        assert second.law.parameters[name] == pytest.approx(first.law.parameters[name], rel=1e-6)


def test_a_fixed_parameter_stays_and_the_others_are_fitted() -> None:
    law = LAWS["chinchilla"]
    p = points("chinchilla")
    found = fit(p, Method(fix={"E": law["E"], "beta": law["beta"]}, bootstrap=0))
    assert found.law.parameters == pytest.approx(law, rel=1e-6)
    assert found.parameters["E"].se is None
    assert fit(points("power"), Method(form="power", fix={"E": 0.0}, bootstrap=0)).law.parameters["E"] == 0


def test_outliers_move_least_squares_and_not_huber() -> None:
    p = points("chinchilla", noise=0.002)
    loss = p.loss.copy()
    loss[::17] *= 1.2
    bad = replace(p, loss=loss)
    truth = LAWS["chinchilla"]["alpha"]
    least = fit(bad, Method(delta=np.inf, bootstrap=0)).law.parameters["alpha"]
    huber = fit(bad, Method(delta=1e-3, bootstrap=0)).law.parameters["alpha"]
    dropped = fit(bad, Method(delta=np.inf, drop_worst_residual=len(loss[::17]), bootstrap=0))
    assert abs(huber - truth) < 0.2 * abs(least - truth)
    assert {e.reason[:10] for e in dropped.points.excluded} == {"one of the"}
    assert abs(dropped.law.parameters["alpha"] - truth) < 0.2 * abs(least - truth)


def test_resampling_takes_whole_units() -> None:
    """Checkpoints of a run are drawn together: intervals of correlated points are wider than those of as many runs."""
    p = points("chinchilla", noise=0.0)
    rng = np.random.default_rng(0)
    unit = np.arange(len(p)) // 5
    noisy = replace(p, loss=p.loss * np.exp(0.01 * rng.standard_normal(unit.max() + 1)[unit]))
    apart = fit(noisy, Method(bootstrap=300)).parameters["alpha"]
    together = fit(replace(noisy, unit=unit, unit_name="trunk"), Method(bootstrap=300)).parameters["alpha"]
    assert together.se > 1.3 * apart.se


def test_few_units_are_not_resampled_in_pairs() -> None:
    p = points("power", noise=0.01)
    few = p.keep(np.arange(len(p)) % 11 == 0, "few")
    assert fit(few, Method(form="power", bootstrap=50)).draws.how == "wild"
    fewer = p.keep(np.arange(len(p)) % 20 == 0, "few")
    found = fit(fewer, Method(form="power", bootstrap=50))
    assert found.draws.how == "none"


def test_too_few_points_are_refused() -> None:
    p = points("chinchilla").keep(np.arange(75) < 5, "few")
    with pytest.raises(DataError, match="5 points cannot determine the 5 parameters"):
        fit(p, Method())


def test_points_that_do_not_determine_a_law_fail_loudly() -> None:
    """Losses without any trend have no optimum that all starts find."""
    p = points("chinchilla")
    flat = replace(p, x=p.x | {"d": 20 * p.x["n"]})  # d goes with n: the two terms are one
    with pytest.raises(NumbersError):
        fit(flat, Method(bootstrap=0))


def test_wrong_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean chinchilla"):
        Method(form="chinchila")
    with pytest.raises(ValueError, match="did you mean alpha"):
        Method(fix={"alpa": 1.0})


def test_the_optimum_by_numbers_is_the_closed_form() -> None:
    """Hoffmann's appendix: N* = G (C/6)^a under C = 6ND."""
    law = LAWS["chinchilla"]
    best = fit(points("chinchilla"), Method(bootstrap=0, at=(1e21,))).best
    at = next(b for b in best if b.flops == 1e21)
    a = law["beta"] / (law["alpha"] + law["beta"])
    g = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / (law["alpha"] + law["beta"]))
    assert at.n.value == pytest.approx(g * (1e21 / 6) ** a, rel=1e-6)
    assert at.a == pytest.approx(a, rel=1e-9)


def test_a_seed_gives_the_same_resamples() -> None:
    p = points("chinchilla", noise=0.01)
    one, two, other = (fit(p, Method(bootstrap=20, seed=s)).draws.theta for s in (0, 0, 1))
    assert (one == two).all()
    assert not (one == other).any()


def test_parametric_resamples_have_the_noise_of_replicates() -> None:
    from llmtrain.scaling.fit import point_fit

    p = points("power", noise=0.01)
    problem, found, p = point_fit(p, Method(form="power"))
    drawn = draw(
        problem, found, p.loss, p.weight, p.unit, how="parametric", count=400, seed=0, replicate_sigma=0.05
    )
    spread = np.log(problem.values(drawn.theta)).std(0)
    assert 0.3 * 0.05 / np.sqrt(len(p)) < np.median(spread) < 5 * 0.05 / np.sqrt(len(p))


@pytest.mark.parametrize("noise", [0.001, 0.003])
def test_runs_on_one_line_are_refused_where_they_had_a_narrow_interval(noise: float) -> None:
    n = np.geomspace(1e7, 1e9, 20)
    for seed in range(3):
        made = planted("chinchilla", LAWS["chinchilla"], {"n": n, "d": 20 * n, "c": 120 * n**2}, noise, seed)
        with pytest.raises(NumbersError, match=r"on one line|do not determine it"):
            fit(made, Method(bootstrap=0))
    assert fit(made, Method(form="power", bootstrap=0)).parameters["alpha"].lo is not None


def test_a_combination_that_is_open_is_refused() -> None:
    """One number of experts says nothing of theirs, whatever a pseudoinverse makes of it."""
    made = points("clark", noise=0.001)
    one = replace(made, x=made.x | {"experts": np.full(len(made), 8.0)})
    with pytest.raises(NumbersError, match="leave a combination of K, a, b, c open"):
        fit(one, Method(form="clark", fix={"E_start": 1.0, "E_max": np.inf}, bootstrap=0))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (["--fix", "E=-1"], "fix E=-1.0: what losses are made of must be 0 or more, and finite"),
        (["--fix", "E=inf"], "fix E=inf: what losses are made of"),
        (["--fix", "alpha=inf"], "fix alpha=inf: an exponent must be finite"),
        (["--form", "clark", "--fix", "E_max=-3"], "fix E_max=-3.0: a shape must be above 0"),
        (["--seed", "-1"], "seed=-1 must be 0 or more"),
    ],
)
def test_settings_without_a_meaning_are_refused_in_one_line(word: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit_command(["runs.csv", "--loss", "loss", "--out", "fit", *word])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_series_that_cannot_be_fitted_is_named_and_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = points("power", noise=0.001)
    rows = [f"good,{c},{y}" for c, y in zip(made.x["c"], made.loss, strict=True)]
    (tmp_path / "runs.csv").write_text("\n".join(["arch,c,loss", "bad,1e18,3.0", "worse,1e18,3.0", *rows]))
    words = [str(tmp_path / "runs.csv"), "--c", "c", "--loss", "loss", "--series", "arch", "--form", "power"]
    fit_command([*words, "--out", str(tmp_path), "--bootstrap", "0"])
    assert "series bad has no law: 1 points cannot determine" in capsys.readouterr().out
    found = json.loads((tmp_path / "fit.json").read_text())
    assert list(found["series"]) == ["good"] and found["failed"].keys() == {"bad", "worse"}
    assert "Series without a law" in (tmp_path / "report.html").read_text()
    assert read_fit(tmp_path).about.series == "good"
    with pytest.raises(DataError, match=r"^no series can be fitted; bad: 1 points"):
        fit_command([*words, "--out", str(tmp_path), "--bootstrap", "0", "--where", "arch!=good"])


def test_a_run_that_stands_there_twice_is_one_run(tmp_path: Path) -> None:
    made = points("power", noise=0.001)
    rows = [f"r{i},{c},{y}" for i, (c, y) in enumerate(zip(made.x["c"], made.loss, strict=True))]
    (tmp_path / "runs.csv").write_text("\n".join(["name,c,loss", *rows, rows[0], rows[1]]))
    [named] = read(tmp_path / "runs.csv", Columns(run="name", c="c", loss="loss"))
    assert len(named) == len(made)
    assert [(e.run, e.reason) for e in named.excluded] == [(r, "it stands there twice") for r in ("r0", "r1")]
    [nameless] = read(tmp_path / "runs.csv", Columns(c="c", loss="loss"))
    assert len(nameless) == len(made) + 2  # they may be two seeds


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"form": "isoflop", "frontier_bins": 5}, "--frontier-bins"),
        ({"form": "isoflop", "drop_worst_residual": 1}, "--drop-worst-residual"),
        ({"form": "envelope", "drop_worst_residual": 1}, "--drop-worst-residual"),
        ({"form": "envelope"}, "weights"),
    ],
)
def test_a_fit_of_optima_refuses_what_it_would_not_use(method: dict[str, Any], said: str) -> None:
    made = points("chinchilla")
    weighted = made if len(method) > 1 else replace(made, weight=1.0 + np.arange(len(made)) % 2)
    with pytest.raises(ConfigError, match=f"makes no use of {said}: leave that out"):
        fit(weighted, Method(bootstrap=0, **method))
