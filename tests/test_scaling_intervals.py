"""Intervals contain what they say they contain, as often as they say."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmtrain.scaling import Columns, Method, fit, predict, read_fit, verify
from llmtrain.scaling.backtest import backtest
from llmtrain.scaling.predict import seal
from llmtrain.scaling.profile import profile_of_offset
from llmtrain.scaling.replicates import replicates
from llmtrain.scaling.report import write_report
from llmtrain.scaling.saved import write_json
from llmtrain.scaling.simulate import simulate
from llmtrain.scaling.study import Study, judge
from llmtrain.scaling.summary import predicted, verified
from planted import LAWS, planted, points

# the quickstart's sweep: its budgets, sizes and seeds, and the run that is held out
BUDGETS = np.array([1.25e11, 4e11, 1.25e12, 4e12])
WINDOW = np.array([0.5, 0.7, 1.0, 1.4, 2.0])
SMALL = {"E": 1.8, "A": 54.0, "B": 148.0, "alpha": 0.32, "beta": 0.32}  # N* from 30k to 170k
HELD_OUT = {"n": np.array([330e3]), "c": np.array([1.6e13]), "d": np.array([1.6e13 / (6 * 330e3)])}


def quickstart():
    best = 30e3 * (BUDGETS / BUDGETS[0]) ** 0.5
    n = np.repeat((best[:, None] * WINDOW).reshape(-1), 2)
    c = np.repeat(BUDGETS, 2 * len(WINDOW))
    return planted("chinchilla", SMALL, {"n": n, "c": c, "d": c / (6 * n)})


@pytest.mark.parametrize("delta", ["auto", np.inf])
def test_the_runs_interval_covers_in_300_sweeps(delta: float | str) -> None:
    found = simulate(quickstart(), SMALL, Method(delta=delta), HELD_OUT, sigma=0.007, count=300, seed=1)
    assert found.failed == 0
    assert 0.92 <= found.in_run.mean() <= 0.98
    assert 0.92 <= found.in_law.mean() <= 1.0
    assert np.median(found.half_width) < 0.04
    assert np.abs(found.predicted / found.truth - 1).mean() < 0.02


def test_misfit_widens_the_interval_which_goes_on_covering() -> None:
    method = Method()
    exact, blurred = (
        simulate(quickstart(), SMALL, method, HELD_OUT, sigma=0.007, count=300, seed=2, misfit=m)
        for m in (0.0, 0.005)
    )
    assert np.median(blurred.half_width) > 1.05 * np.median(exact.half_width)
    assert blurred.in_run.mean() > 0.92


def test_simulated_sweeps_are_fitted_as_real_ones() -> None:
    """One of them, taken out and fitted alone, has the same law and the same bands."""
    sweep = quickstart()
    found = simulate(sweep, SMALL, Method(), HELD_OUT, sigma=0.007, count=3, seed=4)
    rng = np.random.default_rng(4)
    rng.standard_normal((3, 20))  # the misfit's draws, which come first
    losses = sweep.loss * np.exp(0.007 * rng.standard_normal((3, len(sweep))))
    alone = fit(replace(sweep, loss=losses[1]), Method(bootstrap=0)).law
    assert alone.parameters == pytest.approx(found.laws[1].parameters, rel=1e-4)
    assert alone.bands(HELD_OUT, 0.95).loss == pytest.approx(found.predicted[1], rel=1e-7)


def test_what_is_fixed_is_fixed_in_simulated_sweeps_too() -> None:
    fixed = {"E": 1.1 * SMALL["E"]}
    found = simulate(quickstart(), SMALL, Method(fix=fixed), HELD_OUT, sigma=0.007, count=3, seed=4)
    assert len(found.laws) == 3
    assert all(law.parameters["E"] == pytest.approx(fixed["E"]) for law in found.laws)


def test_the_runs_band_holds_the_laws() -> None:
    p = points("chinchilla", noise=0.01)
    bands = fit(p, Method(bootstrap=0)).law.bands(p.x, 0.95)
    assert (bands.run_lo < bands.law_lo).all()
    assert (bands.law_lo < bands.loss).all()
    assert (bands.loss < bands.law_hi).all()
    assert (bands.law_hi < bands.run_hi).all()


def test_a_thousand_bands_have_the_slope_of_their_law() -> None:
    """Between bands of x and of the same x among others there is no difference."""
    p = points("chinchilla", noise=0.01)
    law = fit(p, Method(bootstrap=0)).law
    many = {key: np.repeat(column[:1], 1000) for key, column in p.x.items()}
    bands = law.bands(many, 0.95)
    one = law.bands({key: column[:1] for key, column in p.x.items()}, 0.95)
    assert bands.run_hi == pytest.approx(np.repeat(one.run_hi, 1000), rel=1e-12)


def test_the_delta_methods_errors_are_the_resamples() -> None:
    """With noise alike everywhere they tell of the same thing."""
    p = points("chinchilla", noise=0.005)
    by_resamples = fit(p, Method(delta=np.inf, bootstrap=600)).parameters
    by_delta = fit(p, Method(delta=np.inf, bootstrap=0)).parameters
    for name in ("E", "alpha", "beta", "a"):
        assert by_delta[name].se == pytest.approx(by_resamples[name].se, rel=0.35), name


def test_intervals_of_parameters_cover_where_runs_are_few() -> None:
    truth = LAWS["chinchilla"]
    inside = 0
    for seed in range(20):
        p = points("chinchilla", noise=0.005, seed=seed)
        found = fit(p.keep(np.arange(len(p)) % 3 == 0, "fewer"), Method(bootstrap=0)).parameters["alpha"]
        inside += found.lo <= truth["alpha"] <= found.hi
    assert inside >= 16


def test_the_profile_of_the_offset_is_lowest_at_the_fit_and_rises_to_both_sides() -> None:
    p = points("chinchilla", noise=0.003)
    found = fit(p, Method(bootstrap=0))
    profile = profile_of_offset(found.law.problem(p.x), found.found, p.loss, p.weight, 0.95)
    least = profile.objective.argmin()
    assert profile.values[least] == pytest.approx(found.law.parameters["E"])
    assert profile.objective[least] == pytest.approx(found.found.objective, rel=1e-9)
    assert (np.diff(profile.objective[: least + 1]) <= 1e-12).all()
    assert profile.lo < LAWS["chinchilla"]["E"] < profile.hi


def test_an_offset_that_the_data_do_not_show_has_an_open_profile() -> None:
    x = {"c": np.geomspace(1e17, 1e18, 20)}
    p = planted("power", LAWS["power"], {"n": np.ones(20), "c": x["c"], "d": x["c"] / 6}, noise=0.02)
    found = fit(p, Method(form="power", bootstrap=0))
    profile = profile_of_offset(found.law.problem(p.x), found.found, p.loss, p.weight, 0.95)
    assert profile.lo is None


def test_a_backtest_counts_and_gives_a_percentage_from_twenty_on() -> None:
    found = fit(quickstart_with_noise(), Method(bootstrap=0))
    tested = backtest(found)
    assert [step["n_fitted"] for step in tested["steps"]] == [20, 30]
    assert tested["inside"]["of"] == 20
    assert tested["inside"]["run"] >= 16
    assert "run_percent" in tested["inside"]


def quickstart_with_noise():
    p = quickstart()
    return replace(p, loss=p.loss * np.exp(0.007 * np.random.default_rng(3).standard_normal(len(p))))


def test_eight_runs_resampled_by_signs_cover_as_they_say() -> None:
    """Plain residuals and the normal's percentiles cover 58%: the fit draws few points to itself."""
    c = np.geomspace(1e17, 1e21, 8)
    x = {"n": np.ones(8), "c": c, "d": c / 6}
    inside = []
    for seed in range(40):
        p = planted("power", LAWS["power"], x, noise=0.005, seed=seed)
        found = fit(p, Method(form="power", bootstrap=200, delta=np.inf))
        assert found.draws.how == "wild"
        alpha = found.parameters["alpha"]
        inside.append(alpha.lo <= LAWS["power"]["alpha"] <= alpha.hi)
    assert np.mean(inside) >= 0.85


def ladder(trunks: int, seeds: int = 1):
    """Trunks of one size each, with five branches; their noise is the trunk's."""
    n = np.geomspace(1e7, 1e9, trunks)
    ratio = np.geomspace(5, 160, 5)
    x = {"n": np.tile(np.repeat(n, 5), seeds), "d": np.tile((n[:, None] * ratio).reshape(-1), seeds)}
    made = planted("chinchilla", LAWS["chinchilla"], x | {"c": 6 * x["n"] * x["d"]}, noise=0.001)
    unit = np.arange(trunks * seeds).repeat(5)
    shift = 0.005 * np.random.default_rng(1).standard_normal(trunks * seeds)
    return replace(made, loss=made.loss * np.exp(shift[unit]), unit=unit, unit_name="trunk")


@pytest.mark.parametrize("form", ["chinchilla", "power", "isoflop"])
def test_few_trunks_have_no_interval_and_say_why(form: str, tmp_path) -> None:
    made = ladder(4)
    if form == "isoflop":  # curves of one budget, whose sizes are the same four trunks
        made = replace(
            points("chinchilla", noise=0.003), unit=np.tile(np.arange(15) // 4, 5), unit_name="trunk"
        )
    for count in (0, 100):
        found = fit(made, Method(form=form, bootstrap=count))
        assert all(i.lo is None and i.hi is None and i.se is None for i in found.parameters.values())
        assert all(best.loss.lo is None and (best.n is None or best.n.lo is None) for best in found.best)
    judged = judge(found)
    assert [c.value for c in judged.cautions if c.name == "no interval"] == [4]
    done = Study([judged], [], Columns())
    done.write(tmp_path)
    made_of = predict(tmp_path, flops=1e20)
    assert "intervals are withheld: 4 trunks" in made_of.plain["warnings"][0]
    assert predicted(made_of).count("withheld") == 3  # of the law, of a run, and why
    assert read_fit(tmp_path).best_at(1e20).loss.lo is None
    seal(tmp_path, made_of)
    sealed = json.loads((tmp_path / "prediction.json").read_text())
    assert sealed["law"] == sealed["run"] == {"lo": None, "hi": None}
    seal(tmp_path, predict(tmp_path, flops=1e20))  # the same again
    write_report(done, tmp_path)
    assert "of a run withheld" in (tmp_path / "report.html").read_text()
    later = replace(made, loss=1.01 * made.loss, run=np.array([f"later {i}" for i in range(len(made))]))
    found = verify(tmp_path, later)
    assert found.plain["inside"] == {"law": None, "run": None, "of": len(later)}
    said = verified(found)
    assert "intervals are withheld" in said and "OUTSIDE" not in said and "nan" not in said
    write_json(tmp_path / "verify.json", found.plain)
    write_report(done, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<td>withheld</td>" in page and "NaN" not in page


def test_trunks_enough_or_with_three_seeds_have_intervals() -> None:
    for made, how in ((ladder(7), "wild"), (ladder(3, seeds=3), "parametric")):
        found = fit(made, Method(bootstrap=50))
        assert found.draws.how == how
        assert found.parameters["alpha"].lo is not None


def test_branches_add_no_degrees_of_freedom_to_the_replicates() -> None:
    made = ladder(2, seeds=3)
    known = replicates(made, log=True)
    assert (known.dof, known.spare, known.largest) == (4, 20, 3)
    alone = replicates(replace(made, unit=np.arange(30)), log=True)
    assert (alone.dof, alone.sigma) == (20, pytest.approx(known.sigma))
