"""Verification scores a fit on runs that were not fitted, whatever they are called and wherever they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmtrain.errors import DataError
from llmtrain.scaling import Method, Points, fit, predict, read_fit, study, verify
from llmtrain.scaling.predict import NAME as PREDICTION
from llmtrain.scaling.saved import write_json
from planted import points


def saved(tmp_path: Path, made: Points, **method: object) -> Path:
    study([made], Method(bootstrap=0, **method)).write(tmp_path)
    return tmp_path


def held_out(noise: float = 0.003) -> tuple[Points, Points]:
    """The runs of planted points up to 1e20 FLOPs, and the others."""
    every = points("chinchilla", noise=noise)
    small = every.x["c"] < 2e20
    return every.keep(small, "larger"), every.keep(~small, "smaller")


def test_verification_scores_each_run_and_its_rivals(tmp_path: Path) -> None:
    fitted, others = held_out()
    found = verify(saved(tmp_path, fitted), others)
    law = fit(fitted, Method(bootstrap=0)).law
    assert found.error == pytest.approx(others.loss / law.loss(others.x) - 1)
    assert found.in_run.sum() >= len(others) - 3
    plain = found.plain
    assert plain["inside"] == {"law": int(found.in_law.sum()), "run": int(found.in_run.sum()), "of": 15}
    assert plain["mean_absolute_error"] < 0.2 * min(plain["baselines"].values())
    assert plain["runs"][0]["run_interval"]["half_width"] < 0.05
    write_json(tmp_path / "verify.json", plain)  # it is data


def test_a_percentage_is_given_from_twenty_runs_on(tmp_path: Path) -> None:
    every = points("chinchilla", noise=0.003)
    small = every.x["c"] < 2e19
    found = verify(saved(tmp_path, every.keep(small, "larger")), every.keep(~small, "smaller"))
    assert found.plain["inside"]["of"] == 30
    assert found.plain["inside"]["percent"] == pytest.approx(100 * found.in_run.mean())


def test_fitted_runs_are_not_verified(tmp_path: Path) -> None:
    fitted, _ = held_out()
    folder = saved(tmp_path, fitted)
    every = points("chinchilla", noise=0.003)  # the same source
    assert len(verify(folder, every).points) == 15
    with pytest.raises(DataError, match="all 60 runs were fitted"):
        verify(folder, fitted)


@pytest.mark.parametrize("form", ["chinchilla", "isoflop", "power"])
def test_fitted_runs_are_known_in_a_copy_under_other_names(tmp_path: Path, form: str) -> None:
    fitted, _ = held_out()
    bins = {"frontier_bins": 8} if form == "power" else {}  # whose middles stand for the runs' own FLOPs
    folder = saved(tmp_path, fitted, form=form, **bins)
    every = points("chinchilla", noise=0.003)
    about = replace(every.about, source="copy.csv", sha256="other")
    names = np.array([f"line {i}" for i in range(len(every))])
    count = read_fit(folder).plain["n_points"]
    assert len(verify(folder, replace(every, about=about, run=names)).points) == 75 - count
    copy = replace(fitted, about=about, run=names[:60])
    if not bins:
        with pytest.raises(DataError, match="all 60 runs were fitted"):
            verify(folder, copy)


def test_another_seed_of_a_fitted_cell_is_new(tmp_path: Path) -> None:
    fitted, _ = held_out()
    again = points("chinchilla", noise=0.003, seed=1)
    about = replace(again.about, source="again", sha256="other")
    assert len(verify(saved(tmp_path, fitted), replace(again, about=about)).points) == 75


@pytest.mark.parametrize("field", ["score", "eval_hash", "corpus", "tokenizer", "python", "n_convention"])
def test_runs_of_another_kind_are_refused(tmp_path: Path, field: str) -> None:
    fitted, others = held_out()
    stranger = replace(others, about=replace(others.about, **{field: "other"}))
    with pytest.raises(DataError, match="a law holds for what it was fitted on"):
        verify(saved(tmp_path, fitted), stranger)


def test_a_verification_says_whether_its_prediction_is_of_this_fit(tmp_path: Path) -> None:
    fitted, others = held_out()
    folder = saved(tmp_path, fitted)
    assert verify(folder, others).plain["prediction"] is None
    write_json(folder / PREDICTION, predict(folder, flops=1e21).plain)
    assert verify(folder, others).plain["prediction"]["same_fit"] is True
    study([fitted], Method(bootstrap=0, delta=1e-3)).write(folder)
    assert verify(folder, others).plain["prediction"]["same_fit"] is False
