"""What a comparison shows: files, tables, figures and the page, each held against the numbers."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest

from compared import BUDGET, YARDSTICKS, about, compared
from llmtrain.compare.checklist import checklist
from llmtrain.compare.judge import judge
from llmtrain.compare.publish import publish
from llmtrain.compare.render import csv_text, markdown, terminal
from llmtrain.compare.report import write_report
from llmtrain.compare.saved import Comparison, read_comparison
from llmtrain.compare.summary import statements
from llmtrain.compare.table import tables
from llmtrain.compare.words import NOT_LEARNED, value
from llmtrain.scaling.checklist import NOT_STATED
from pages import CHROMIUM, NASTY, Page, opened

BUDGETS = (BUDGET // 2, BUDGET)
FIGURES = {"scores", "differences", "growth", "alike"}


def renamed(comparison: Comparison, old: str, new: str) -> Comparison:
    """With another name for a series, wherever it stands."""
    from pydantic import TypeAdapter

    adapter = TypeAdapter(Comparison)
    text = adapter.dump_json(comparison).decode()
    return adapter.validate_json(text.replace(json.dumps(old), json.dumps(new)))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with all files of a comparison at three budgets, and what was printed."""
    folder = tmp_path_factory.mktemp("comparison")
    fewer = tuple(one for one in YARDSTICKS if one.name not in ("minimal_pairs", "continuation_retrieval"))
    return folder, publish(*compared(budgets=BUDGETS, yardsticks=fewer), folder)


@pytest.fixture(scope="module")
def judged() -> Comparison:
    return judge(*compared())


def test_all_files_are_there(published: tuple[Path, str]) -> None:
    folder, _ = published
    assert {path.name for path in folder.iterdir()} == {
        "comparison.json", "items.parquet", "table.md", "table.csv", "figures", "report.html",
    }  # fmt: skip
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}


def test_the_same_scores_write_the_same_files(published: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = published
    assert publish(*read_comparison(folder), tmp_path) == printed
    for path in folder.rglob("*.*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_every_table_and_figure_names_what_is_matched(published: tuple[Path, str]) -> None:
    folder, printed = published
    text = (folder / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.S)
    captions = [one for one in captions if "every choice is listed" not in one]
    assert len(captions) == len(FIGURES) + len(tables(read_comparison(folder)[0]))
    assert all("Matched: model FLOPs, within 1% of the baseline" in one for one in captions)
    assert "Matched: model FLOPs" in printed


def test_tables_have_a_row_a_series_and_the_numbers_of_the_results(judged: Comparison) -> None:
    first = tables(judged)[0]
    names = [one.name for one in judged.about.series]
    assert [row[0] for row in first.rows][: first.rule] == names
    [result] = [one for one in judged.results if one.yardstick == "probe_name_role" and one.main]
    column = next(i for i, name in enumerate(first.columns) if name.startswith("probe name role"))
    for row, standing in zip(first.rows, result.standings, strict=False):
        assert row[column].startswith(value(standing.estimate))
        assert ("†" in row[column]) == (standing.learned is False)
        shown = {one.series for one in result.differences if one.shown}
        assert bool({"▲", "▼"} & set(row[column])) == (standing.series in shown)


def test_what_is_one_objectives_own_has_a_table_of_its_own(judged: Comparison) -> None:
    where = {column: one.title for one in tables(judged) for column in one.columns}
    apart = [title for column, title in where.items() if column.startswith("continuation retrieval")]
    assert apart[0].startswith("Close to one series' own objective")
    assert next(t for c, t in where.items() if c.startswith("pseudo likelihood")).startswith(
        "Pseudo-likelihood"
    )
    assert not any("continuation" in c for c, t in where.items() if t.startswith("Frozen features"))


def test_paradigms_are_parts_and_not_close_to_an_objective(judged: Comparison) -> None:
    titles = [one.title for one in tables(judged) if any("pairs/order" in column for column in one.columns)]
    assert titles and all(title.startswith("Minimal pairs by paradigm") for title in titles)
    assert "pairs/order" not in " ".join(statements(judged, BUDGET))


def test_markdown_and_terminal_say_the_same(judged: Comparison) -> None:
    found = tables(judged)
    text = markdown(found)
    for width in (60, 110, 200):
        shown = terminal(judged, width=width)
        assert all(len(line) <= width for line in shown.splitlines())
        for one in (one for one in found if one.rule is not None):
            assert all(cell in shown for row in (one.columns, *one.rows) for cell in row)
        assert all(text in " ".join(shown.split()) for text in statements(judged, BUDGET) if "- " not in text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == sum(len(one.rows) + 2 for one in found)
    assert all(line.count("|") == 1 + line.count(" | ") + 1 for line in lines if not line.startswith("|---"))


def test_csv_has_full_precision(judged: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(judged))))
    trained = {row["series"]: row for row in rows if row["role"] == "trained"}
    assert list(trained) == [one.name for one in judged.about.series]
    for result in judged.results:
        for one in result.standings:
            key = f"{result.yardstick}/{result.metric}"
            assert float(trained[one.series][key]) == one.estimate.value
            assert float(trained[one.series][f"{key} lo"]) == one.estimate.lo
    assert trained["contrastive/dense"]["suffix_bits_per_byte/bits per byte"] == ""


def test_the_page_is_self_contained(published: tuple[Path, str]) -> None:
    text = (published[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("img") == len(FIGURES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", text)
    for words in (
        "What the data show",
        "How to read an interval",
        "Learning rates tried",
        "Checklist",
        NOT_LEARNED,
    ):
        assert words in page.text
    comparison, _ = read_comparison(published[0])
    for budget in comparison.about.budgets:
        for statement in statements(comparison, budget):
            assert statement in page.text


def test_text_of_users_is_escaped_everywhere(judged: Comparison, tmp_path: Path) -> None:
    nasty = renamed(judged, "clm/hybrid", NASTY)
    write_report(nasty, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "script" not in Page(text).tags
    assert NASTY in Page(text).text
    for figure in (tmp_path / "figures").glob("*.svg"):
        assert "<script" not in figure.read_text(encoding="utf-8")
    assert "<script" not in markdown(tables(nasty))


def test_the_checklist_says_what_is_not_stated(judged: Comparison) -> None:
    bare = dataclasses.replace(
        judged, about=dataclasses.replace(about(), cells=(), tuning=(), overlap={}, corpus="")
    )
    full, gaps = checklist(judged), checklist(bare)
    assert [item.question for item in full] == [item.question for item in gaps]
    answers = {item.question: item.answer for item in gaps}
    for question in ("corpus", "learning rates tried for a series", "overlap with training", "not finished"):
        assert answers[question] == NOT_STATED
    assert {item.question for item in full if not item.stated} == {"code", "command"}


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed: the page was not opened")
def test_the_page_shows_itself_in_a_browser(published: tuple[Path, str], tmp_path: Path) -> None:
    """All of it is laid out, and the picture has the figures' colours."""
    shown, picture = opened(published[0] / "report.html", tmp_path)
    assert shown.count("<table") == (published[0] / "report.html").read_text().count("<table")
    assert picture.std() > 0.05


@pytest.mark.slow
def test_wandb_has_the_tables_offline(
    judged: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmtrain.callbacks.loggers.wandb import WandB
    from llmtrain.compare.logged import log_tables

    monkeypatch.setenv("HOME", str(tmp_path))  # nobody is logged in
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    folder = tmp_path / "planted"
    folder.mkdir()
    log_tables(judged, folder, WandB())
    [run] = (folder / "wandb").glob("offline-run-*")
    found = {path.name.split("_")[0]: json.loads(path.read_text()) for path in run.rglob("*.table.json")}
    assert found.keys() == {"scores", "verdict"}
    assert len(found["scores"]["data"]) == len(judged.rows)
    assert len(found["verdict"]["data"]) == sum(len(one.standings) for one in judged.results)


def test_yardsticks_that_are_planted_are_all_judged(judged: Comparison) -> None:
    assert len(judged.results) == len(YARDSTICKS)
