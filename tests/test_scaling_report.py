"""The commands as they are typed, and the page that they leave."""

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling import Method, study, verify
from llmtrain.scaling.checklist import NOT_STATED, checklist
from llmtrain.scaling.report import render, write_report
from llmtrain.scaling.saved import write_json
from pages import CHROMIUM, NASTY, Page, opened
from planted import LAWS, grid, planted, points
from processes import forked
from published import FOLDER, needs_published

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
FIGURES = {"isoflop", "envelope", "allocation", "contours", "residuals", "agreement", "profile"}


def said(script: str, *words: str) -> tuple[int, str, str]:
    """Exit code and what one of the scripts wrote, in a fork: the command itself, without the imports."""
    main = __import__(script).main

    def work() -> int:
        sys.argv = [f"scripts/{script}.py", *words]
        return main()

    with forked(work) as child:
        return child.ended()


def write_csv(path: Path, series: str = "dense") -> Path:
    made = planted("chinchilla", LAWS["chinchilla"], grid(np.geomspace(1e17, 1e20, 4), 5, 2.0), noise=0.003)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", "params", "tokens", "flops", "nats"])
        for i in range(len(made)):
            writer.writerow(
                [series, *(repr(float(made.x[key][i])) for key in "ndc"), repr(float(made.loss[i]))]
            )
    return path


COLUMNS = ("--n", "params", "--c", "flops", "--loss", "nats")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder that fit, predict and verify have been through, and what fit printed."""
    folder = tmp_path_factory.mktemp("fit")
    table, out = write_csv(folder / "runs.csv"), folder / "out"
    where = ("--where", "flops<5e19")
    code, printed, wrong = said(
        "fit", str(table), *COLUMNS, *where, "--bootstrap", "100", "--at", "1e20", "--out", str(out)
    )
    assert (code, wrong) == (0, "")
    assert said("predict", str(out), "--flops", "1e20")[0] == 0
    code, verified, wrong = said("verify", str(out), str(table))
    assert (code, wrong) == (0, "")
    assert "of 5 inside the interval of a run" in verified
    return out, printed


def test_the_commands_leave_their_files(command: tuple[Path, str]) -> None:
    out, printed = command
    assert {path.name for path in out.iterdir()} == {
        "fit.json", "figures", "report.html", "prediction.json", "verify.json",
    }  # fmt: skip
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}
    plain = json.loads((out / "fit.json").read_text())
    assert plain["n_points"] == 15
    assert f"{plain['law']['E']:.6g}" in printed
    verified = json.loads((out / "verify.json").read_text())
    assert verified["prediction"]["same_fit"] is True
    assert [run["run"] for run in verified["runs"]] == [f"line {i}" for i in range(17, 22)]


def test_the_same_command_writes_the_same_fit(command: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = command
    table = out.parent / "runs.csv"
    words = (
        str(table),
        *COLUMNS,
        "--where",
        "flops<5e19",
        "--bootstrap",
        "100",
        "--at",
        "1e20",
        "--no-report",
    )
    assert said("fit", *words, "--out", str(tmp_path))[0] == 0
    assert (tmp_path / "fit.json").read_bytes() == (out / "fit.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "line", "code"),
    [
        (("--n", "parms"), "has no column 'parms': did you mean params?", 2),
        (("--lss", "x"), "there is no option --lss: did you mean --loss?", 2),
        (("--form", "chinchila"), "form=chinchila: did you mean chinchilla?", 2),
        (("--residual", "lag"), "--residual lag: it should be 'log' or 'raw'", 2),
        (("--delta", "small"), "--delta 'small' is no number", 2),
        (("--fix", "E"), "--fix E: write NAME=VALUE", 2),
        (("--bootstrap", "many"), "invalid int value: 'many'", 2),
        (("--where", "flops<2e17"), "5 points cannot determine the 5 parameters", 3),
        (("--drop-highest-loss", "99"), "--drop-highest-loss 99 leaves none of 20 points", 3),
        (("--form", "clark"), "form clark needs experts; name their column with --experts", 3),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    tmp_path: Path, words: tuple[str, ...], line: str, code: int
) -> None:
    table = write_csv(tmp_path / "runs.csv")
    got, _, wrong = said("fit", str(table), *COLUMNS, *words, "--out", str(tmp_path / "out"))
    assert got == code
    assert line in wrong
    assert wrong.startswith("error: ")
    assert wrong.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_fit_needs_a_place_to_go(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "runs.csv")
    assert "give --out DIR" in said("fit", str(table), *COLUMNS)[2]


def test_the_page_is_self_contained(command: tuple[Path, str]) -> None:
    text = (command[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("img") == len(FIGURES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", text)
    for words in ("IsoFLOP curves", "Compute-optimal runs", "Checklist", "Back-test", "What a budget buys"):
        assert words in page.text


def test_the_page_has_the_verification_of_its_own_fit_alone(tmp_path: Path) -> None:
    every = points("chinchilla", noise=0.003)
    small = every.x["c"] < 2e20
    done, other = (
        study([every.keep(small, "larger")], Method(bootstrap=0, delta=delta)) for delta in ("auto", 1e-3)
    )
    done.write(tmp_path)
    write_json(tmp_path / "verify.json", verify(tmp_path, every).plain)
    assert "Verified on runs" in render(done, [], tmp_path)
    other.write(tmp_path)
    assert "Verified on runs" not in render(other, [], tmp_path)


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study of two series, one of which has a nasty name."""
    folder = tmp_path_factory.mktemp("two")
    x = grid(np.geomspace(1e17, 1e20, 4), 5, 2.0)
    made = [planted("chinchilla", LAWS["chinchilla"], x, 0.003, seed) for seed in (1, 2)]
    named = [
        replace(p, about=replace(p.about, series=s, source=NASTY))
        for p, s in zip(made, ("dense", NASTY), strict=True)
    ]
    done = study(named, Method(bootstrap=0))
    done.write(folder)
    write_report(done, folder)
    return folder / "report.html"


def test_text_of_users_is_escaped_everywhere(page_of_two: Path) -> None:
    text = page_of_two.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 2  # the page's data and its own script
    assert NASTY in page.text
    assert "<script>alert" not in text
    for figure in (page_of_two.parent / "figures").glob("*.svg"):
        assert "<script" not in figure.read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(data)["series"][1]["name"] == NASTY


def test_captions_state_the_conventions(page_of_two: Path) -> None:
    text = page_of_two.read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.S)
    assert len(captions) == len(FIGURES)
    assert (
        sum("N: as given; D: tokens; C: FLOPs, 6ND." in caption for caption in captions) == len(FIGURES) - 1
    )


def test_the_checklist_is_a_schema_whose_gaps_are_said() -> None:
    full = study([points("chinchilla", noise=0.003)], Method(bootstrap=0)).series[0]
    optima = study([points("chinchilla", noise=0.003)], Method(form="isoflop", bootstrap=0)).series[0]
    assert [i.question for i in checklist(full)] == [i.question for i in checklist(optima)]
    answers = {i.question: i.answer for i in checklist(full)}
    assert answers["learning rate"] == NOT_STATED
    assert answers["compute C"] == "6ND"
    assert "75" in answers["points fitted"]


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed: the page was not opened")
def test_the_page_draws_itself_in_a_browser(page_of_two: Path, tmp_path: Path) -> None:
    """Its script runs to the end, the slider's plot has every run, and the picture is not blank."""
    shown, picture = opened(page_of_two, tmp_path)
    assert 'data-drawn="yes"' in shown
    assert shown.count("<circle") == 20 + 1
    assert "times the largest run" in shown
    assert picture.std() > 0.05


@needs_published
def test_the_command_of_the_published_recipe(tmp_path: Path) -> None:
    code, printed, _ = said(
        "fit", str(FOLDER / "chinchilla_epoch.csv"), "--n", "Model Size", "--c", "Training FLOP", "--loss", "loss",
        "--form", "chinchilla", "--residual", "log", "--delta", "1e-3", "--drop-highest-loss", "5",
        "--bootstrap", "200", "--seed", "0", "--no-report", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    plain = json.loads((tmp_path / "fit.json").read_text())
    assert plain["objective"] == pytest.approx(1.0182740178e-3, rel=1e-6)
    assert plain["n_points"] == 240
    assert plain["law"]["a"] == pytest.approx(0.5138995, abs=1e-6)
    assert "1.81722" in printed
