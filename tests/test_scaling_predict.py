"""Predictions from a file equal those of the fit; warnings and comparisons are tied to their numbers."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

from llmtrain.errors import ConfigError, DataError, NumbersError
from llmtrain.scaling import Method, Points, fit, predict, read_fit, study, verify
from llmtrain.scaling.cautions import cautions
from llmtrain.scaling.compare import compare
from llmtrain.scaling.points import sha256_of
from llmtrain.scaling.predict import seal
from llmtrain.scaling.recomputed import same
from llmtrain.scaling.sensitivity import sensitivity
from planted import LAWS, grid, planted, points
from scripts.predict import predict as predict_command


def saved(tmp_path: Path, made: Points, **method: object) -> Path:
    study([made], Method(bootstrap=0, **method)).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["chinchilla", "power", "gadre", "isoflop"])
def test_a_fit_read_back_predicts_as_it_did(tmp_path: Path, form: str) -> None:
    made = points("chinchilla", noise=0.003)
    found = fit(made, Method(form=form, bootstrap=0))
    folder = saved(tmp_path, made, form=form)
    best = found.best_at(3e21)
    prediction = predict(folder, flops=3e21)
    assert prediction.bands.loss[0] == pytest.approx(best.loss.value, rel=1e-12)
    assert prediction.bands.law_lo[0] == pytest.approx(best.loss.lo, rel=1e-3)
    if best.n:
        assert (prediction.n, prediction.d) == pytest.approx((best.n.value, best.d.value), rel=1e-12)
    assert prediction.plain["fit_sha256"] == sha256_of(folder / "fit.json")
    assert prediction.plain["beyond"] == pytest.approx(3.0)


def test_a_prediction_is_of_a_budget_or_of_a_run(tmp_path: Path) -> None:
    folder = saved(tmp_path, points("chinchilla", noise=0.003))
    one = predict(folder, n=1e9, d=2e10)
    assert one.flops == pytest.approx(6 * 1e9 * 2e10)
    assert one.bands.run_lo < one.bands.law_lo < one.bands.loss < one.bands.law_hi < one.bands.run_hi
    for words in ({}, {"n": 1e9}, {"flops": 1e20, "n": 1e9}):
        with pytest.raises(ConfigError, match="give --flops alone, or --n and --d together"):
            predict(folder, **words)
    with pytest.raises(ConfigError, match="must be above 0"):
        predict(folder, flops=-1.0)
    assert "beyond 10" in predict(folder, flops=1e24).plain["warnings"][0]


def test_a_sealed_prediction_is_not_written_over(tmp_path: Path) -> None:
    folder = str(saved(tmp_path, points("chinchilla", noise=0.003)))
    predict_command([folder, "--flops", "1e21"])
    sealed = (tmp_path / "prediction.json").read_text()
    predict_command([folder + "/../" + tmp_path.name, "--flops", "1e21"])  # the same again is no other
    with pytest.raises(
        ConfigError, match=r"holds another prediction.*--out, or write over it with --force"
    ) as caught:
        predict_command([folder, "--flops", "2e21"])
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "prediction.json").read_text()) == json.loads(sealed) | {"fit": ANY}
    predict_command([folder, "--flops", "2e21", "--out", str(tmp_path / "other")])
    predict_command([folder, "--flops", "2e21", "--force"])
    assert json.loads((tmp_path / "prediction.json").read_text())["flops"] == 2e21


@pytest.mark.parametrize(("moved", "held"), [(1e-13, True), (1e-6, False)])
def test_a_prediction_computed_again_is_the_same_to_rounding(
    tmp_path: Path, moved: float, held: bool
) -> None:
    """Sums in another order move its last digits; what was sealed then stays, byte for byte."""
    first = read_fit(saved(tmp_path, points("chinchilla", noise=0.003)))
    again = replace(first, law=replace(first.law, theta=first.law.theta * (1 + moved)), sha256="other")
    path = seal(tmp_path, predict(first, flops=1e21))
    sealed = path.read_bytes()
    assert predict(again, flops=1e21).plain["loss"] != json.loads(sealed)["loss"]
    if held:
        assert seal(tmp_path, predict(again, flops=1e21)) == path
    else:
        with pytest.raises(ConfigError, match="holds another prediction"):
            seal(tmp_path, predict(again, flops=1e21))
    assert path.read_bytes() == sealed
    others = points("chinchilla", noise=0.003, seed=1)
    others = replace(others, about=replace(others.about, source="others", sha256="others"))
    assert verify(again, others).plain["prediction"]["same_fit"] is held


def test_only_numbers_are_the_same_when_they_are_near() -> None:
    written = {"loss": 2.0, "run": [1.9, None], "form": "power", "beyond": 3}
    assert same(written, {"loss": 2.0 + 1e-10, "run": [1.9, None], "form": "power", "beyond": 3.0})
    for other in ({"loss": 2.0 + 1e-8}, {"run": [1.9, 2.1]}, {"form": "powers"}, {"beyond": None}, {"x": 1}):
        assert not same(written, written | other)


def test_a_law_without_an_optimum_predicts_none(tmp_path: Path) -> None:
    fit = read_fit(saved(tmp_path, points("chinchilla", noise=0.003)))
    theta = fit.law.theta.copy()
    theta[fit.law.form.at("alpha")] = -0.3  # larger is worse, at any size
    with pytest.raises(NumbersError, match="has no optimum at"):
        predict(replace(fit, law=replace(fit.law, theta=theta)), flops=1e21)


def test_each_form_is_asked_by_what_it_knows(tmp_path: Path) -> None:
    experts = saved(
        tmp_path / "clark", points("clark", noise=0.001), form="clark", fix={"E_start": 1.0, "E_max": np.inf}
    )
    more, fewer = (predict(experts, n=1e9, experts=e).bands.loss[0] for e in (64.0, 1.0))
    assert more < fewer
    with pytest.raises(ConfigError, match="give --n and --experts together"):
        predict(experts, n=1e9)
    with pytest.raises(ConfigError, match="knows no FLOPs; ask with --n and --experts"):
        predict(experts, flops=1e20)
    repeated = saved(tmp_path / "repeated", points("data_constrained", noise=0.001), form="data_constrained")
    fresh, again = (predict(repeated, n=1e9, d=2e10, unique=u).bands.loss[0] for u in (None, 1e9))
    assert fresh < again
    chinchilla = saved(tmp_path / "plain", points("chinchilla"))
    with pytest.raises(ConfigError, match="give --flops alone, or --n and --d together"):
        predict(chinchilla, n=1e9, d=2e10, unique=1e9)


def test_laws_of_compute_alone_say_so(tmp_path: Path) -> None:
    folder = saved(tmp_path, points("chinchilla"), form="isoflop")
    with pytest.raises(ConfigError, match="law of compute alone"):
        predict(folder, n=1e9, d=2e10)


def test_files_that_are_no_fits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no fit"):
        read_fit(tmp_path)
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(DataError, match="is no fit"):
        read_fit(tmp_path)
    (tmp_path / "fit.json").write_text('{"version": 99}')
    with pytest.raises(DataError, match="fit again"):
        read_fit(tmp_path)


def test_fit_json_is_data_at_full_precision(tmp_path: Path) -> None:
    made = points("chinchilla", noise=0.003)
    found = fit(made, Method(bootstrap=50, delta=np.inf, at=(1e22,)))
    study([made], Method(bootstrap=50, delta=np.inf, at=(1e22,))).write(tmp_path)
    plain = json.loads((tmp_path / "fit.json").read_text())
    for name, value in found.law.parameters.items():
        assert plain["law"][name] == value  # to the last bit
    assert plain["objective"] == found.found.objective
    assert plain["delta"] == "inf"
    assert plain["n_points"] == 75
    assert plain["unit"] == "run"
    assert set(plain["sigma"]) == {"residual", "replicate", "replicate_dof", "curves"}
    [at] = [one for one in plain["optimal"]["at"] if one["flops"] == 1e22]
    for name in ("n", "d", "loss"):
        assert at[f"{name}_lo"] < at[name] < at[f"{name}_hi"]
    assert {"law", "standard_errors", "intervals", "excluded", "warnings", "backtest", "slopes"} <= set(plain)
    residuals = np.log(found.law.loss(made.x)) - np.log(made.loss)
    assert plain["objective"] == pytest.approx((residuals**2 / 2).sum(), rel=1e-12)


def two_series(factor: float, noise: float = 0.003) -> tuple[Points, Points]:
    """The second needs ``factor`` times the FLOPs, whatever the loss."""
    x = grid(np.geomspace(1e17, 1e21, 6), 7, 2.0)
    law = LAWS["chinchilla"]
    root = factor**0.5
    worse = law | {"A": law["A"] * root ** law["alpha"], "B": law["B"] * root ** law["beta"]}
    first, second = planted("chinchilla", law, x, noise, 1), planted("chinchilla", worse, x, noise, 2)
    named = [replace(p, about=replace(p.about, series=s)) for p, s in ((first, "dense"), (second, "ssm"))]
    return named[0], named[1]


@pytest.mark.parametrize("form", ["chinchilla", "isoflop"])
def test_a_compute_multiplier_is_found_with_its_interval(form: str) -> None:
    first, second = (fit(p, Method(form=form, bootstrap=0)) for p in two_series(1.6, noise=0.001))
    found = compare(first, second)
    assert len(found["multipliers"]) == 3
    for multiplier in found["multipliers"]:
        assert multiplier["lo"] < 1.6 < multiplier["hi"]
        assert multiplier["value"] == pytest.approx(1.6, rel=0.05)
        for made, law in (
            (first.points, first),
            (second.points, second),
        ):  # both came to it in what was fitted
            ends = [law.best_at(float(c)).loss.value for c in (made.x["c"].min(), made.x["c"].max())]
            assert ends[1] < multiplier["loss"] < ends[0]


def test_exponents_that_differ_are_told_apart_and_equal_ones_are_not() -> None:
    first, second = two_series(1.6)
    same = compare(*(fit(p, Method(bootstrap=0)) for p in (first, second)))
    assert min(d["p"] for d in same["exponents"] if d["name"] in ("alpha", "beta")) > 0.05
    steep = LAWS["chinchilla"] | {"alpha": 0.28, "A": 120.0}
    other = planted("chinchilla", steep, first.x, 0.003, 3)
    found = compare(fit(first, Method(bootstrap=0)), fit(other, Method(bootstrap=0)))
    alpha = next(d for d in found["exponents"] if d["name"] == "alpha")
    assert alpha["p"] < 0.01
    assert alpha["hi"] < 0


def test_series_of_other_scores_have_no_common_axis_and_of_other_corpora_no_comparison() -> None:
    first, second = two_series(1.6)
    scored = replace(second, about=replace(second.about, score="recall"))
    found = compare(fit(first, Method(bootstrap=0)), fit(scored, Method(bootstrap=0)))
    assert (found["multipliers"], "not one axis" in found["reason"]) == ([], True)
    other = replace(second, about=replace(second.about, corpus="other"))
    with pytest.raises(DataError, match="different corpora"):
        compare(fit(first, Method(bootstrap=0)), fit(other, Method(bootstrap=0)))


def test_series_of_a_form_without_flops_are_compared_by_exponents_alone() -> None:
    first, second = (points("clark", noise=0.001, seed=seed) for seed in (0, 1))
    named = replace(second, about=replace(second.about, series="second"))
    found = study([first, named], Method(form="clark", bootstrap=0)).comparisons[0]
    assert (found["multipliers"], found["reason"]) == ([], "form clark knows no FLOPs")
    assert {one["name"] for one in found["exponents"]} == {"a", "b", "c"}


def warned(made: Points, **method: object) -> dict[str, float]:
    found = fit(made, Method(bootstrap=0, **method))
    return {c.name: c.value for c in cautions(found, None, sensitivity(found))}


def test_what_dropping_points_did_is_told() -> None:
    made = points("chinchilla", noise=0.001)
    high = replace(made, loss=np.where(made.loss >= np.sort(made.loss)[-3], made.loss * 1.3, made.loss))
    rows = {
        row["what"]: row
        for row in sensitivity(fit(high, Method(delta=np.inf, drop_highest_loss=3, bootstrap=0)))
    }
    with_all = rows["with the 3 dropped points"]["law"]["beta"]
    truth = LAWS["chinchilla"]["beta"]
    assert abs(with_all - truth) > 5 * abs(rows["as fitted"]["law"]["beta"] - truth)


@pytest.mark.slow
def test_warnings_are_tied_to_their_numbers() -> None:
    made = points("chinchilla", noise=0.003)
    n = len(made)
    clean = made.more | {
        "epochs": np.ones(n),
        "warmup": np.full(n, 0.05),
        "matched": np.ones(n),
    }
    assert warned(replace(made, more=clean)) == {}
    assert warned(made, at=(1e24,))["extrapolation"] == pytest.approx(1e3)
    assert warned(replace(made, more=clean | {"epochs": np.full(n, 7.0)}))["epochs"] == 7
    assert warned(replace(made, more=clean | {"warmup": np.full(n, 0.3)}))["warmup"] == pytest.approx(0.3)
    assert warned(replace(made, more=clean | {"matched": (np.arange(n) > 4).astype(float)}))["schedule"] == 5
    assert warned(replace(made, unit=np.arange(n) // 3, unit_name="trunk"))["correlated points"] == 3
    assert warned(made.keep(made.x["c"] < 2e18, "later"))["few budgets"] == 2
    assert warned(made.keep(np.arange(n) % 6 == 0, "few"))["few points"] == 13
    assert warned(made.keep(made.x["c"] < 2e18, "later"))["short span"] == pytest.approx(1)
    assert warned(made, form="isoflop", minimum="quadratic")["wide window"] == pytest.approx(6)
    few = made.keep(made.x["c"] < 2e19, "later")
    assert warned(few, form="isoflop", minimum="quadratic")["noise unknown"] == 1
    twice = {key: np.repeat(column, 2) for key, column in few.x.items()}
    seen = planted("chinchilla", LAWS["chinchilla"], twice, 0.003)
    assert "noise unknown" not in warned(seen, form="isoflop", minimum="quadratic")


def test_outliers_and_misfit_are_warned_of() -> None:
    made = points("chinchilla", noise=0.001)
    loss = made.loss.copy()
    loss[70] *= 1.15
    assert "outliers" in warned(replace(made, loss=loss), delta=np.inf)
    twice = {key: np.repeat(column, 2) for key, column in made.x.items()}
    bent = planted("chinchilla", LAWS["chinchilla"], twice, 0.001)
    wave = 1 + 0.01 * np.sin(3 * np.log(twice["n"]))
    assert warned(replace(bent, loss=bent.loss * wave))["misfit"] > 2


def test_a_learning_rate_on_the_edge_of_its_bracket_is_warned_of() -> None:
    x = grid(np.geomspace(1e17, 1e20, 4), 5, 2.0)
    thrice = {key: np.repeat(column, 3) for key, column in x.items()}
    made = planted("chinchilla", LAWS["chinchilla"], thrice)
    rates = np.tile([1e-3, 2e-3, 4e-3], 20)
    inside = made.loss * np.where(rates == 2e-3, 1.0, 1.01)
    edge = made.loss * np.where(rates == 4e-3, 1.0, 1.01)
    assert "learning rate on an edge" not in warned(replace(made, loss=inside, more={"lr": rates}))
    assert warned(replace(made, loss=edge, more={"lr": rates}))["learning rate on an edge"] == 20


def test_an_offset_of_zero_is_warned_of() -> None:
    """Losses that curve down on log axes want a negative E, which the form does not have."""
    c = np.geomspace(1e17, 1e20, 30)
    made = planted(
        "power", {"E": 0.0, "A": 60.0, "alpha": 0.08}, {"n": np.ones(30), "c": c, "d": c / 6}, 0.001
    )
    bent = replace(made, loss=made.loss - 0.3)
    assert "E at a bound" in warned(bent, form="power")
