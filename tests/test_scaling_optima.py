"""Approaches 1 and 2: optima of budgets, and power laws through them."""

from dataclasses import replace

import numpy as np
import pytest

from llmtrain.errors import DataError
from llmtrain.scaling import Columns, Method, fit, read
from llmtrain.scaling.cautions import cautions
from llmtrain.scaling.curve import NoMinimumError, minimum
from llmtrain.scaling.flops import measured
from llmtrain.scaling.published import LAWS as PUBLISHED
from llmtrain.scaling.published import hoffmann_counts
from planted import LAWS, grid, planted
from published import FOLDER, needs_published

HOFFMANN = PUBLISHED["hoffmann2022"]
EPOCH = PUBLISHED["besiroglu2024"]


def closed_form(law: dict[str, float], flops: float) -> float:
    """N* under C = 6ND."""
    g = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / (law["alpha"] + law["beta"]))
    return g * (flops / 6) ** (law["beta"] / (law["alpha"] + law["beta"]))


def curves(law: dict[str, float], budgets: np.ndarray, within: float, sizes: int = 15, noise: float = 0.0):
    c = np.repeat(budgets, sizes)
    best = np.repeat([closed_form(law, flops) for flops in budgets], sizes)
    n = best * np.tile(np.geomspace(1 / within, within, sizes), len(budgets))
    return planted("chinchilla", law, {"n": n, "c": c, "d": c / (6 * n)}, noise)


@pytest.mark.parametrize(("within", "ratio"), [(2, 0.9967), (4, 0.9870), (16, 0.9490)])
def test_a_parabola_is_biased_by_its_window_as_published(within: float, ratio: float) -> None:
    points = curves(HOFFMANN, np.geomspace(1e17, 1e21, 5), within)
    found = fit(points, Method(form="isoflop", minimum="quadratic", bootstrap=0))
    true = 1e24 / 6 / closed_form(HOFFMANN, 1e24)
    assert found.lines[1].at(1e24, 0.95).value / true == pytest.approx(ratio, abs=5.1e-5)


def test_optima_of_exact_curves_are_the_laws() -> None:
    points = curves(EPOCH, np.geomspace(1e17, 1e21, 6), 2.0, sizes=9)
    found = fit(points, Method(form="isoflop", bootstrap=50))
    a = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
    assert found.parameters["a"].value == pytest.approx(a, abs=5e-3)
    assert found.parameters["b"].value == pytest.approx(1 - a, abs=5e-3)
    assert found.parameters["E"].value == pytest.approx(EPOCH["E"], abs=0.02)
    for optimum in found.optima.found:
        assert optimum.n == pytest.approx(closed_form(EPOCH, optimum.flops), rel=0.03)
        low, high = optimum.flat
        assert low < optimum.n < high


def test_exponents_of_n_and_d_are_fitted_apart() -> None:
    """Where C is not 6ND they do not add to one."""
    points = curves(EPOCH, np.geomspace(1e17, 1e21, 5), 2.0, sizes=9)
    d = points.x["d"] / (1 + 30 * points.x["n"] ** -0.2)
    found = fit(replace(points, x=points.x | {"d": d}), Method(form="isoflop", bootstrap=0)).parameters
    assert abs(found["a"].value + found["b"].value - 1) > 0.005


def test_budgets_without_a_minimum_inside_are_excluded_with_the_reason() -> None:
    x = curves(EPOCH, np.geomspace(1e17, 1e20, 4), 2.0, sizes=5).x
    n = x["n"] * np.where(x["c"] > 5e19, 4.0, 1.0)  # of the last budget, all too large
    cut = planted("chinchilla", EPOCH, x | {"n": n, "d": x["c"] / (6 * n)})
    found = fit(cut, Method(form="isoflop", bootstrap=0))
    assert [o.flops for o in found.optima.found] == pytest.approx([1e17, 1e18, 1e19])
    [lost] = found.optima.excluded
    assert "1e+20" in lost.run
    assert "minimum" in lost.reason
    out = {e.run for e in found.points.excluded}
    assert out == set(cut.run[cut.x["c"] > 5e19]) and len(found.points) == 15
    assert all(lost.run in e.reason for e in found.points.excluded)
    assert found.points.x["c"].max() == pytest.approx(1e19)  # else it would count as fitted


def test_curves_that_bend_the_wrong_way_have_no_minimum() -> None:
    u = np.linspace(0, 1, 5)
    with pytest.raises(NoMinimumError, match="not positive"):
        minimum(u, 3 - (u - 0.5) ** 2, "quadratic")
    with pytest.raises(NoMinimumError, match="below the smallest"):
        minimum(u, 3 + (u + 0.5) ** 2, "quadratic")
    with pytest.raises(NoMinimumError, match="at the largest"):
        minimum(u, 3 + (u - 1.5) ** 2, "akima")


def test_no_budget_with_a_minimum_is_an_error_with_the_reasons() -> None:
    points = curves(EPOCH, np.geomspace(1e17, 1e20, 3), 2.0, sizes=5)
    falling = replace(points, loss=3 - 0.1 * np.tile(np.arange(5), 3) + 0.0)
    with pytest.raises(DataError, match="0 of 3 budgets have a minimum"):
        fit(falling, Method(form="isoflop"))


def test_a_robust_parabola_leaves_an_outlier_out() -> None:
    u = np.linspace(-1, 1, 9)
    loss = 3 + 0.05 * u**2
    loss[1] += 0.4
    plain, robust = (minimum(u, loss, how).at for how in ("quadratic", "robust"))
    assert abs(robust) < 1e-3 < abs(plain)


def test_intervals_of_exponents_have_the_truth() -> None:
    """Of noisy curves, 19 times in 20 or so: here at least 16 of 20."""
    a = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
    budgets = np.geomspace(1e17, 1e20, 4)
    inside = 0
    for seed in range(20):
        points = curves(EPOCH, budgets, 2.0, sizes=5)
        noise = np.exp(0.002 * np.random.default_rng(seed).standard_normal(len(points)))
        found = fit(
            replace(points, loss=points.loss * noise), Method(form="isoflop", bootstrap=50)
        ).parameters["a"]
        inside += found.lo <= a <= found.hi
    assert inside >= 16


@pytest.mark.parametrize("residual", ["log", "raw"])
def test_intervals_of_a_fit_of_optima_hold_the_noise_of_its_curves(residual: str) -> None:
    """Three budgets leave a line one degree of freedom, so without the curves' own noise luck would decide."""
    sigma, budgets = 0.01, np.geomspace(1e17, 1e19, 3)
    clean = curves(EPOCH, budgets, 2.0, sizes=5)
    twice = planted("chinchilla", EPOCH, {key: np.tile(column, 2) for key, column in clean.x.items()})
    method = Method(form="isoflop", residual=residual, bootstrap=0, fix={"E": EPOCH["E"]})
    inside, of = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noisy = replace(twice, loss=twice.loss * np.exp(sigma * rng.standard_normal(len(twice))))
        try:
            found = fit(noisy, method)
        except DataError:  # noise took a minimum out of its sizes
            continue
        truth = planted("chinchilla", EPOCH, {key: column[7:8] for key, column in clean.x.items()}).loss[0]
        bands = found.law.bands({"c": np.array([1e18])}, 0.95)
        run = truth * np.exp(sigma * rng.standard_normal())
        inside, of = inside + bool(bands.run_lo[0] <= run <= bands.run_hi[0]), of + 1
        unit = 1.0 if residual == "log" else float(found.optima.column("loss").mean())
        assert found.law.sigma.run >= 0.5 * sigma * unit
        assert found.optima.noise.n.shape == found.optima.column("n").shape
    assert of > 30 and inside >= 0.93 * of


def test_a_minimum_that_noise_often_takes_away_is_warned_of() -> None:
    """Two seeds of each size, the second as far below its curve as the first is above: minima stay, noise shows."""
    clean = curves(EPOCH, np.geomspace(1e17, 1e19, 3), 1.3, sizes=5)
    made = planted("chinchilla", EPOCH, {key: np.tile(column, 2) for key, column in clean.x.items()})
    for sigma, warned in ((1e-5, False), (0.02, True)):
        up = np.exp(np.repeat([sigma, -sigma], len(clean)))
        found = fit(replace(made, loss=made.loss * up), Method(form="isoflop", bootstrap=0))
        names = {caution.name for caution in cautions(found, None, [])}
        assert ("minimum lost in noise" in names) == warned


def test_the_envelope_is_what_no_cheaper_run_reaches() -> None:
    points = curves(EPOCH, np.geomspace(1e17, 1e21, 9), 3.0, sizes=9)
    found = fit(points, Method(form="envelope"))
    losses = found.optima.column("loss")
    assert (np.diff(losses) < 0).all()
    assert found.parameters["a"].value == pytest.approx(
        EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"]), abs=0.03
    )


def test_kaplans_exponent_is_chinchillas_law_without_embeddings() -> None:
    """Pearce and Song 2024 (arXiv:2406.12907): sizes counted so, at these sizes, give .79 where the truth is .51."""
    n, budgets = np.geomspace(8e2, 1.5e9, 25), np.geomspace(1.5e12, 3e20, 12)
    c, small = np.repeat(budgets, len(n)), np.tile(n, len(budgets))
    x = {"n": small + 47491 * np.cbrt(small), "d": c / (6 * small), "c": c}
    seen = replace(planted("chinchilla", EPOCH, x), x=x | {"n": small})
    assert fit(seen, Method(form="isoflop", bootstrap=0)).parameters["a"].value == pytest.approx(
        0.786, abs=0.01
    )


@pytest.mark.parametrize(
    ("shape", "n", "flops", "ratio"),
    [
        ((10, 640, 10), 73825280, 9.298772e11, 1.025036),
        ((20, 1024, 16), 305707008, 4.135248e12, 1.100817),
        ((40, 3584, 28), 6796274688, 8.302105e13, 0.994114),
    ],
)
def test_hoffmanns_counts_are_those_of_the_table(shape: tuple, n: int, flops: float, ratio: float) -> None:
    found = hoffmann_counts(*shape)
    assert found.n == n
    assert (found.flops, found.over_6nd) == pytest.approx((flops, ratio), rel=1e-6)


def test_a_convention_other_than_6nd_moves_the_optimum() -> None:
    """With C = 6ND (1 + c N^-.2) small models cost more, so the optimum is at more parameters."""
    x = grid(np.geomspace(1e17, 1e21, 5), 9, 3.0)
    costly = x | {"c": x["c"] * (1 + 30 * x["n"] ** -0.2)}
    plain = fit(planted("chinchilla", LAWS["chinchilla"], x), Method(bootstrap=0, at=(1e19,)))
    other = planted("chinchilla", LAWS["chinchilla"], costly)
    other = replace(other, convention=measured(costly["n"], costly["d"], costly["c"], "theirs"))
    best = next(b for b in fit(other, Method(bootstrap=0, at=(1e19,))).best if b.flops == 1e19)
    first = next(b for b in plain.best if b.flops == 1e19)
    assert best.n.value < first.n.value
    assert best.n.value * best.d.value * 6 < 1e19
    assert best.a != pytest.approx(first.a, abs=1e-3)
    assert other.convention.scatter < 2e-3


PORIAN = {  # of optima weighted by 1/std^2, of raw runs by Akima, of raw runs by local parabolas
    "rw|base|long|kaplan|kaplan|train": (0.8353, 0.8348, 0.865),
    "rw|base|long|kaplan|standard|val": (0.7065, 0.7003, 0.695),
    "rw|base|short|kaplan|standard|val": (0.6020, 0.6055, 0.593),
    "rw|base|short|chinchilla|standard|val": (0.5715, 0.5715, 0.552),
    "rw|tuned|short|const|standard|val": (0.4969, 0.4970, 0.501),
}


@needs_published
@pytest.mark.parametrize("condition", PORIAN)
def test_porians_five_conditions_lead_from_kaplan_to_chinchilla(condition: str) -> None:
    weighted, akima, local = PORIAN[condition]
    columns = Columns(
        c="C",
        loss="n_star",
        weight="1/n_star_std^2",
        where=(f"condition={condition}", "n_star!="),
    )
    [optima] = read(FOLDER / "porian_optima.csv", columns)
    line = fit(optima, Method(form="power", fix={"E": 0.0}, delta=np.inf, bootstrap=0)).law
    assert -line.parameters["alpha"] == pytest.approx(weighted, abs=5.1e-5)
    [runs] = read(
        FOLDER / "porian_isoflops.csv",
        Columns(n="N", d="D", c="C", loss="loss", where=(f"condition={condition}",)),
    )
    for how, a, tolerance in (("auto", akima, 0.005), ("local", local, 0.035)):
        found = fit(runs, Method(form="isoflop", minimum=how, bootstrap=0)).parameters["a"].value
        assert found == pytest.approx(a, abs=tolerance), how


@needs_published
@pytest.mark.parametrize(
    ("task", "metric", "ours", "theirs"),
    [
        ("imagenet1k", "acc1", (-0.111388, 5.8581), (-0.163775, 23.1836)),
        ("mscoco_captions", "image_retrieval_recall@5", (-0.079434, 2.7497), (-0.050759, 1.5886)),
    ],
)
def test_openclips_power_laws(task: str, metric: str, ours: tuple, theirs: tuple) -> None:
    for source, bins, (alpha, beta) in (("!=CLIP-WIT", 5, ours), ("=CLIP-WIT", None, theirs)):
        where = (f"downstream_dataset={task}", f"upstream_dataset{source}")
        [points] = read(
            FOLDER / "openclip_zeroshot.csv", Columns(c="gmacs_total", loss=f"1-{metric}", where=where)
        )
        method = Method(form="power", fix={"E": 0.0}, delta=np.inf, frontier_bins=bins, bootstrap=0)
        law = fit(points, method).law.parameters
        assert -law["alpha"] == pytest.approx(alpha, abs=1e-5)
        assert law["A"] == pytest.approx(beta, rel=1e-4)
